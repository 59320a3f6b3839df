# SPDX-License-Identifier: Apache-2.0
"""Cameras behind one protocol: the newest picture with its capture time, and whether pictures still arrive."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from vla_edge.contract import Frame
from vla_edge.errors import CameraError
from vla_edge.robot.camera_options import CameraOptions

RATE_WINDOW_S = 3.0
"""Time over which a camera's pictures are counted."""


class Camera(Protocol):
    """An open camera. `newest` never waits for the device longer than its first picture takes."""

    name: str
    exempt_from_freshness: bool
    """A file's pictures are not taken when they are read: no freshness can be asked of them."""

    def newest(self) -> Frame:
        """The newest picture; the same `sequence` again when no newer one came. CameraError: none can come."""

    def close(self) -> None: ...


def open_camera(options: CameraOptions) -> Camera:
    """The camera `options` names. Errors: CameraError (missing device or file, wrong picture size)."""
    if options.kind == "sim":
        from vla_edge.robot.shared_frames import SimCamera

        return SimCamera(options.name, Path(options.device))
    if options.kind == "file":
        from vla_edge.robot.camera_file import open_file_camera

        return open_file_camera(options)
    from vla_edge.robot.camera_v4l2 import V4l2Camera

    return V4l2Camera(options)


class FreshnessWatch:
    """Says when a camera stopped: a frozen picture is a fault, not a still scene.

    First by freshness: neither sequence nor capture time advanced for `limit_s`, or the newest picture is older than
    that. A sensor that repeats one picture with fresh times is found by equal bytes over `equal_s`, for cameras that
    are declared noisy. Rules with time as an argument; no clock inside.
    """

    def __init__(
        self,
        name: str,
        noisy: bool,
        exempt: bool,
        limit_s: float = 1.0,
        equal_s: float = 1.0,
        fps: int = 0,
        say: Callable[[str], None] | None = None,
    ) -> None:
        """fps: pictures a second that were asked for, 0 for none; `say` is told once when fewer come."""
        self._fps, self._say = fps, say
        self._first: Frame | None = None
        self._name, self._noisy, self._exempt = name, noisy, exempt
        self._limit_ns, self._equal_ns = int(limit_s * 1e9), int(equal_s * 1e9)
        self._last: Frame | None = None
        self._advanced_ns = 0
        self._changed_ns = 0

    def check(self, frame: Frame, now_ns: int) -> None:
        """Look at the newest frame at `now_ns` (CLOCK_MONOTONIC). CameraError when the camera is frozen."""
        if self._exempt:
            return
        last = self._last
        if last is None or (frame.sequence != last.sequence and frame.captured_ns > last.captured_ns):
            self._advanced_ns = now_ns
            if last is None or not (self._noisy and (frame.image == last.image).all()):
                self._changed_ns = now_ns
            self._last = frame
            self._count(frame)
        still_ns = max(now_ns - self._advanced_ns, now_ns - frame.captured_ns)
        if still_ns > self._limit_ns:
            raise CameraError(
                f"camera {self._name} is frozen: no new picture for {still_ns / 1e9:.1f} s (limit "
                f"{self._limit_ns / 1e9:.1f} s); check its cable"
            )
        if self._noisy and now_ns - self._changed_ns > self._equal_ns:
            raise CameraError(
                f"camera {self._name} is frozen: every picture was the same for "
                f"{(now_ns - self._changed_ns) / 1e9:.1f} s"
                f" (limit {self._equal_ns / 1e9:.1f} s, declared noisy); replug it"
            )

    def _count(self, frame: Frame) -> None:
        """Over the first seconds, when exposure has settled: a driver that promised a rate may not keep it."""
        if self._say is None or not self._fps:
            return
        if self._first is None:
            self._first = frame
        spent_s = (frame.captured_ns - self._first.captured_ns) / 1e9
        if spent_s < RATE_WINDOW_S:
            return
        rate = (frame.sequence - self._first.sequence) / spent_s
        if rate < 0.8 * self._fps:
            self._say(
                f"note: camera {self._name} gives {rate:.1f} pictures a second, asked for {self._fps}; more light, a "
                "smaller size or fourcc=MJPG"
            )
        self._say = None
