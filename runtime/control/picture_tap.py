# SPDX-License-Identifier: Apache-2.0
"""Pictures on their way past inference: thumbnails for the status page, and every picture for a record."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import cv2
import numpy as np

from vla_edge.camera_names import short_name
from vla_edge.contract import Frame
from vla_edge.errors import CameraError
from vla_edge.files import write_bytes
from vla_edge.robot.cameras import Camera
from vla_edge.robot.shared_frames import FrameWriter, SimCamera
from vla_edge.runtime.control.run_folder import RunFolder

THUMBNAIL_WIDTH = 320
THUMBNAIL_FPS = 5.0
_PREFIX = "thumbnail."
_LAST = "last.{}.jpg"


class SharedCamera:
    """A camera that two threads ask."""

    def __init__(self, camera: Camera) -> None:
        self.name = camera.name
        self.exempt_from_freshness = camera.exempt_from_freshness
        self._camera = camera
        self._lock = threading.Lock()

    def newest(self) -> Frame:
        with self._lock:
            return self._camera.newest()

    def close(self) -> None:
        with self._lock:
            self._camera.close()


class PictureTap(threading.Thread):
    """Looks at the cameras `fps` times a second: a thumbnail of each goes into the run folder, new pictures to
    `keep`."""

    def __init__(
        self,
        cameras: Mapping[str, Camera],
        folder: RunFolder,
        fps: float,
        keep: Callable[[Frame], None] | None,
        say: Callable[[str], None],
    ) -> None:
        super().__init__(name="picture-tap", daemon=True)
        self._cameras, self._folder, self._keep, self._say = cameras, folder, keep, say
        self._period_s = 1 / fps
        self._writers: dict[str, FrameWriter] = {}
        self._seen: dict[str, int] = {}
        self._without = False
        self._ended = threading.Event()

    def run(self) -> None:
        for old in self._folder.path.glob(_LAST.format("*")):
            old.unlink(missing_ok=True)
        due = time.monotonic()
        while not self._ended.is_set():
            for name, camera in self._cameras.items():
                try:
                    frame = camera.newest()
                except CameraError:
                    continue  # the inference loop meets it too and says so
                if self._seen.get(name) != frame.sequence:
                    self._seen[name] = frame.sequence
                    self._publish(name, frame)
                    if self._keep is not None:
                        self._keep(frame)
            due = max(due + self._period_s, time.monotonic())
            self._ended.wait(due - time.monotonic())
        for writer in self._writers.values():
            writer.close()
        for name, path in thumbnail_files(self._folder).items():
            if data := thumbnail(name, path):
                write_bytes(self._folder.path / _LAST.format(name), data, flush=False)
            path.unlink(missing_ok=True)

    def close(self) -> None:
        self._ended.set()
        self.join()

    def _publish(self, name: str, frame: Frame) -> None:
        height, width = frame.image.shape[:2]
        size = (THUMBNAIL_WIDTH, max(1, round(height * THUMBNAIL_WIDTH / width)))
        small = np.asarray(cv2.resize(frame.image, size, interpolation=cv2.INTER_AREA), np.uint8)
        if name not in self._writers and not self._without:
            try:
                self._writers[name] = FrameWriter(self._folder.path / (_PREFIX + short_name(name)), size[1], size[0])
            except OSError as error:
                self._without = True
                self._say(f"inference: no thumbnails in {self._folder.path}: {error.strerror}; everything else goes on")
        if name in self._writers:
            self._writers[name].write(small, frame.captured_ns)


def thumbnail_files(folder: RunFolder) -> dict[str, Path]:
    """Short camera name → the file with its newest thumbnail."""
    return {path.name.removeprefix(_PREFIX): path for path in sorted(folder.path.glob(_PREFIX + "*"))}


def thumbnail(name: str, path: Path) -> bytes | None:
    """JPEG of the newest thumbnail in a file of `thumbnail_files`; None before the first."""
    try:
        camera = SimCamera(name, path)
        image = camera.newest().image
        camera.close()
    except CameraError:
        return None
    encoded, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])
    assert encoded
    return bytes(data.tobytes())


def newest_pictures(folder: RunFolder) -> dict[str, bytes]:
    """Short camera name → JPEG of the newest picture of the run in `folder`, also after it ended."""
    running = {name: thumbnail(name, path) for name, path in thumbnail_files(folder).items()}
    start, _, end = _LAST.partition("{}")
    ended = {file.name[len(start) : -len(end)]: file.read_bytes() for file in folder.path.glob(_LAST.format("*"))}
    return {**ended, **{name: data for name, data in running.items() if data is not None}}
