# SPDX-License-Identifier: Apache-2.0
"""One video file: exact frames by time, and the encoding of an episode while it is recorded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray

from vla_edge.errors import DatasetError
from vla_edge.files import refuse_pointer
from vla_edge.lerobot_data.tolerance import TOLERANCE_S

_FORWARD_FRAMES = 16
"""A frame at most this far ahead is reached by decoding on; further ahead a seek is cheaper."""


def open_video(path: Path) -> Any:
    """An open PyAV container with a video stream. Raises DatasetError naming the file."""
    refuse_pointer(path, DatasetError)
    try:
        container = av.open(str(path), metadata_errors="replace")
    except FileNotFoundError:
        raise DatasetError(f"video {path} is missing; restore it from the source of the dataset") from None
    except FFmpegError as error:
        raise DatasetError(f"video {path} cannot be opened ({error}); restore it from the source") from None
    if not container.streams.video:
        container.close()
        raise DatasetError(f"video {path} holds no video stream; restore it from the source")
    if container.streams.video[0].codec_context is None:
        container.close()
        raise DatasetError(f"video {path} is coded in a way this PyAV build does not know; restore it or re-encode it")
    return container


class VideoReader:
    """One open video; remembers where it stands, so reading in order decodes each frame once.

    tolerance_s: a frame belongs to a time when they differ by no more; of several the nearest. Not shared between
    threads. Raises DatasetError naming the file.
    """

    def __init__(self, path: Path, tolerance_s: float = TOLERANCE_S) -> None:
        self.path = path
        self.tolerance_s = tolerance_s
        self._container = open_video(path)
        self._stream = self._container.streams.video[0]
        base = self._stream.time_base
        rate = self._stream.average_rate
        if base is None or rate is None:
            self._container.close()
            raise DatasetError(f"video {path} has no time base or frame rate; restore it from the source")
        self._base = float(base)
        self._forward_s = _FORWARD_FRAMES / float(rate)
        self._decoded: Iterator[av.VideoFrame] | None = None
        self._frame: av.VideoFrame | None = None
        self._times = frame_times(path) if tolerance_s > TOLERANCE_S else None

    def frame_at(self, time_s: float) -> NDArray[np.uint8]:
        """The frame shown at `time_s` of the file's clock: uint8 [height, width, 3], RGB, a new array."""
        try:
            frame = self._find(self._nearest(time_s))
        except FFmpegError as error:
            self._decoded = None
            raise DatasetError(f"video {self.path} cannot be decoded at {time_s:.4f} s ({error}); restore it") from None
        if frame is None:
            raise DatasetError(
                f"video {self.path} has no frame at {time_s:.4f} s (within {self.tolerance_s} s); restore it"
            )
        return np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)

    def close(self) -> None:
        self._decoded = None
        self._frame = None
        self._container.close()

    def _nearest(self, time_s: float) -> float:
        """The time of the frame nearest to `time_s`, where one lies within a tolerance wider than the usual."""
        if self._times is None or not self._times.size:
            return time_s
        near = float(self._times[np.abs(self._times - time_s).argmin()])
        return near if abs(near - time_s) <= self.tolerance_s else time_s

    def _find(self, time_s: float) -> av.VideoFrame | None:
        now = self._time(self._frame)
        if self._frame is not None and abs(now - time_s) <= TOLERANCE_S:
            return self._frame
        if self._decoded is None or time_s < now or time_s > now + self._forward_s:
            self._seek(time_s)
        frame = self._decode_to(time_s)
        if frame is None:
            # A seek may land behind the frame (reordered frames at a key frame): the start never does.
            self._seek(0.0)
            frame = self._decode_to(time_s)
        return frame

    def _seek(self, time_s: float) -> None:
        self._container.seek(round(time_s / self._base), stream=self._stream, backward=True)
        self._decoded = self._container.decode(self._stream)
        self._frame = None

    def _decode_to(self, time_s: float) -> av.VideoFrame | None:
        assert self._decoded is not None
        for frame in self._decoded:
            self._frame = frame
            now = self._time(frame)
            if abs(now - time_s) <= TOLERANCE_S:
                return frame
            if now > time_s:
                return None
        self._decoded = None
        self._frame = None
        return None

    def _time(self, frame: av.VideoFrame | None) -> float:
        return -1.0 if frame is None or frame.pts is None else frame.pts * self._base


def frame_times(path: Path) -> NDArray[np.float64]:
    """When each frame of a video is shown, rising, in seconds: read from its packets, nothing is decoded."""
    try:
        with open_video(path) as container:
            stream = container.streams.video[0]
            stamps = [packet.pts for packet in container.demux(stream) if packet.pts is not None]
            return np.sort(np.array(stamps, np.float64)) * float(stream.time_base)
    except FFmpegError as error:
        raise DatasetError(f"video {path} cannot be read ({error}); restore it from the source") from None


@dataclass(frozen=True, slots=True)
class Encoding:
    """How the writer encodes. Key frame every 2nd frame and quality 30 are LeRobot's choice."""

    codec: str
    options: tuple[tuple[str, str], ...]


AV1 = Encoding("libsvtav1", (("g", "2"), ("crf", "30"), ("preset", "10")))
H264 = Encoding("libx264", (("g", "2"), ("crf", "23"), ("preset", "veryfast"), ("bf", "0")))


def best_encoding() -> Encoding:
    """AV1 where PyAV's FFmpeg can encode it, else H.264; `info.json` says which was used."""
    for encoding in (AV1, H264):
        if encoding.codec in av.codecs_available:
            return encoding
    raise DatasetError(
        "this PyAV build encodes neither AV1 (libsvtav1) nor H.264 (libx264); store images instead of video"
    )


@contextmanager
def _no_promotion() -> Iterator[None]:
    """Run by root, SVT-AV1 puts its threads and the caller's into the real-time class at priority 99 and leaves them
    there, above the control loop of an arm. Threads started in the block, and the calling one, are put back into the
    caller's class."""
    tasks = Path("/proc/self/task")
    if not tasks.is_dir():  # not Linux: nothing there does that
        yield
        return
    before, policy, parameter = set(os.listdir(tasks)), os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameter)
        for task in set(os.listdir(tasks)) - before:
            with suppress(ProcessLookupError):
                os.sched_setscheduler(int(task), policy, parameter)


class VideoEncoder:
    """Encodes one episode of one camera to `path` while it is recorded; holds only the encoder's own frames."""

    def __init__(self, path: Path, fps: float, encoding: Encoding) -> None:
        # SVT-AV1 prints a page per encoder; it has no other switch than this variable of the C library.
        os.putenv("SVT_LOG", "1")
        self._container: Any = av.open(str(path), "w")
        rate = Fraction(fps).limit_denominator(1001)
        stream: Any = self._container.add_stream(encoding.codec, rate=rate, options=dict(encoding.options))
        stream.pix_fmt = "yuv420p"
        self._stream = stream
        self._step = 1 / rate
        self._count = 0

    def add(self, image: NDArray[np.uint8]) -> None:
        """image: uint8 [height, width, 3], RGB; height and width even."""
        if self._count == 0:
            self._stream.height, self._stream.width = image.shape[:2]
            with _no_promotion():
                self._stream.codec_context.open()
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        frame.pts, frame.time_base = self._count, self._step
        self._container.mux(self._stream.encode(frame))
        self._count += 1

    def close(self) -> None:
        """Write out what the encoder holds and close the file. A second call does nothing."""
        if self._count:
            self._container.mux(self._stream.encode(None))
            self._count = 0
        self._container.close()
