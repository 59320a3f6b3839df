# SPDX-License-Identifier: Apache-2.0
"""Pictures from files: a video, a folder of pictures, or an .npz, played at their rate and repeated from the start."""

from __future__ import annotations

import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from vla_edge.camera_names import short_name
from vla_edge.contract import Frame
from vla_edge.errors import CameraError
from vla_edge.robot.camera_options import CameraOptions

_PICTURES = (".png", ".jpg", ".jpeg", ".bmp")


class FileCamera:
    """`count` pictures at `fps`; picture k is shown from k / fps on, by the clock `now_ns`, and the file starts over.

    A file's pictures carry the time at which they would have been taken.
    """

    exempt_from_freshness = True

    def __init__(
        self,
        name: str,
        read: Callable[[int], NDArray[np.uint8]],
        count: int,
        fps: float,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.name = name
        self._read, self._count, self._now_ns = read, count, now_ns
        self._period_ns = round(1e9 / fps)
        self._start_ns = now_ns()
        self._newest = Frame(name, read(0), self._start_ns, 1)

    def newest(self) -> Frame:
        """The picture that is due now."""
        index = (self._now_ns() - self._start_ns) // self._period_ns
        if index + 1 != self._newest.sequence:
            self._newest = Frame(
                self.name, self._read(index % self._count), self._start_ns + index * self._period_ns, index + 1
            )
        return self._newest

    def close(self) -> None:
        """Nothing is held open."""


def open_file_camera(options: CameraOptions) -> FileCamera:
    """The camera that plays `options.device`. Errors: CameraError (missing, unreadable, no pictures, another size)."""
    path = Path(options.device)
    if not path.exists():
        raise CameraError(
            f"camera {options.name}: {path} does not exist; give a video, a folder of pictures or an .npz"
        )
    fps, turned = float(options.fps or 30), options.turned
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in _PICTURES)
        if not files:
            raise CameraError(f"camera {options.name}: {path} holds no picture ({', '.join(_PICTURES)})")
        camera = FileCamera(options.name, lambda index: turned(_picture(options.name, files[index])), len(files), fps)
    elif path.suffix == ".npz":
        stack = _stack(options.name, path)
        camera = FileCamera(options.name, lambda index: turned(stack[index]), len(stack), fps)
    else:
        video = _Video(options.name, path)
        camera = FileCamera(
            options.name, lambda index: turned(video.read(index)), video.count, options.fps or video.fps
        )
    height, width = camera.newest().image.shape[:2]
    if options.width and (height, width) != (options.height, options.width):
        raise CameraError(
            f"camera {options.name}: {path} holds {width}x{height}, asked for {options.width}x{options.height}; "
            "leave the size out"
        )
    return camera


def _picture(name: str, file: Path) -> NDArray[np.uint8]:
    picture = cv2.imread(str(file), cv2.IMREAD_COLOR)
    if picture is None:
        raise CameraError(f"camera {name}: {file} is not a picture; remove or replace it")
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), np.uint8)


def _stack(name: str, path: Path) -> NDArray[np.uint8]:
    """The array `name` (full or short) of an .npz, or its only one: uint8 [n, h, w, 3] or [h, w, 3]."""
    try:
        with np.load(path, allow_pickle=False) as file:
            keys = [key for key in (name, short_name(name)) if key in file] or (
                list(file) if len(file.files) == 1 else []
            )
            if not keys:
                raise CameraError(f"camera {name}: {path} holds {', '.join(file)}, none is named {name}")
            stack = file[keys[0]]
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise CameraError(f"camera {name}: {path} is not a readable .npz ({error})") from None
    stack = stack[None] if stack.ndim == 3 else stack
    if stack.dtype != np.uint8 or stack.ndim != 4 or stack.shape[-1] != 3 or not len(stack):
        raise CameraError(
            f"camera {name}: {path} holds {stack.dtype} {list(stack.shape)}, must be uint8 [n, height, width, 3]"
        )
    return np.asarray(stack, np.uint8)


class _Video:
    """A video read picture by picture through PyAV, which knows LeRobot's AV1; going back reopens it."""

    def __init__(self, name: str, path: Path) -> None:
        self._name, self._path = name, path
        self._open()
        stream = self._container.streams.video[0]
        self.count = stream.frames or sum(packet.pts is not None for packet in self._container.demux(stream))
        self.fps = float(stream.average_rate or 30)
        if self.count < 1:
            raise CameraError(f"camera {name}: {path} holds no pictures")
        self._open()

    def _open(self) -> None:
        import av  # with the extra `data`: a robot's own cameras do without
        from av.error import FFmpegError

        try:
            self._container = av.open(str(self._path))
        except FFmpegError as error:
            raise CameraError(f"camera {self._name}: {self._path} is not a video ({error}); give another") from None
        if not self._container.streams.video:
            raise CameraError(f"camera {self._name}: {self._path} holds no video; give another")
        if self._container.streams.video[0].codec_context is None:
            raise CameraError(
                f"camera {self._name}: {self._path} is coded in a way this PyAV does not know; convert it to H.264"
            )
        self._frames = self._container.decode(self._container.streams.video[0])
        self._next = 0

    def read(self, index: int) -> NDArray[np.uint8]:
        from av.error import FFmpegError

        if index < self._next:
            self._container.close()
            self._open()
        try:
            while True:
                frame = next(self._frames)
                self._next += 1
                if self._next > index:
                    return np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
        except (FFmpegError, StopIteration) as error:
            why = f" ({error})" if isinstance(error, FFmpegError) else ""
            raise CameraError(
                f"camera {self._name}: {self._path} ends at picture {self._next} of {self.count}{why}; the video is "
                "damaged"
            ) from None
