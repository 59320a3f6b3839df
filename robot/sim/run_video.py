# SPDX-License-Identifier: Apache-2.0
"""What a person sees of a run afterwards: an MP4, or a strip of pictures as one PNG."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from vla_edge.errors import ConfigError
from vla_edge.files import partial_path, put_in_place, write_bytes

STRIP_PICTURES = 12
_STRIP_COLUMNS = 4


class Recording:
    """Pictures at a fixed rate into `path`, which appears whole when `close` is called.

    .png is a strip of at most 12 pictures, evenly spread over all that came; .mp4 is a video with that strip beside it
    (the same name, .png): H.264 where PyAV is installed, else MPEG-4 by OpenCV. ConfigError: another ending, a folder
    that takes no file; OSError from `add` and `close`: it takes no more.
    """

    def __init__(self, path: Path, fps: float) -> None:
        if path.suffix not in (".mp4", ".png"):
            raise ConfigError(f"{path}: a recording ends in .mp4 or .png")
        self._path, self._fps = path, fps
        self._partial = partial_path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._partial.touch()
            self._partial.unlink()
        except OSError as error:
            raise ConfigError(f"{path.parent}: {error.strerror}; record into a folder that can be written to") from None
        self._video: _Video | None = None
        self._strip: list[NDArray[np.uint8]] = []
        self._every = 1
        self.pictures = 0

    def add(self, picture: NDArray[np.uint8]) -> None:
        """The next picture, uint8 [height, width, 3] RGB, height and width even; all of one size."""
        self._keep(picture)
        if self._path.suffix == ".mp4":
            if self._video is None:
                self._video = _new_video(self._partial, self._fps, picture.shape[0], picture.shape[1])
            self._video.add(picture)
        self.pictures += 1

    def close(self) -> None:
        """Write the file. Without any picture there is none."""
        if self.pictures == 0:
            return
        if self._video is not None:
            self._video.close()
            put_in_place(self._partial, self._path)
        write_strip(self._path.with_suffix(".png"), self._strip)

    def _keep(self, picture: NDArray[np.uint8]) -> None:
        if self.pictures % self._every == 0:
            self._strip.append(picture)
        if len(self._strip) > 2 * STRIP_PICTURES:
            self._strip = self._strip[::2]
            self._every *= 2


def write_strip(path: Path, pictures: list[NDArray[np.uint8]]) -> None:
    """At most 12 of the pictures (the first and the last among them), row by row, as one PNG."""
    chosen = [pictures[i] for i in np.unique(np.linspace(0, len(pictures) - 1, STRIP_PICTURES).round().astype(int))]
    while len(chosen) % _STRIP_COLUMNS and len(chosen) > _STRIP_COLUMNS:
        chosen.append(np.zeros_like(chosen[0]))
    rows = [np.concatenate(chosen[i : i + _STRIP_COLUMNS], axis=1) for i in range(0, len(chosen), _STRIP_COLUMNS)]
    encoded, data = cv2.imencode(".png", cv2.cvtColor(np.concatenate(rows), cv2.COLOR_RGB2BGR))
    assert encoded
    write_bytes(path, data.tobytes())


class _PyAvVideo:
    def __init__(self, av: Any, path: Path, fps: float, height: int, width: int) -> None:
        self._av = av
        self._container = av.open(str(path), "w")
        self._stream = self._container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        self._stream.height, self._stream.width, self._stream.pix_fmt = height, width, "yuv420p"

    def add(self, picture: NDArray[np.uint8]) -> None:
        for packet in self._stream.encode(self._av.VideoFrame.from_ndarray(picture, format="rgb24")):
            self._container.mux(packet)

    def close(self) -> None:
        for packet in self._stream.encode():
            self._container.mux(packet)
        self._container.close()


class _OpenCvVideo:
    def __init__(self, path: Path, fps: float, height: int, width: int) -> None:
        self._writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, (width, height))

    def add(self, picture: NDArray[np.uint8]) -> None:
        self._writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        self._writer.release()


_Video = _PyAvVideo | _OpenCvVideo


def _new_video(path: Path, fps: float, height: int, width: int) -> _Video:
    try:
        import av
    except ImportError:
        return _OpenCvVideo(path, fps, height, width)
    return _PyAvVideo(av, path, fps, height, width)
