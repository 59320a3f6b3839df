"""Cameras behind one protocol: which device is which name, the newest picture with its capture time, and whether
pictures still arrive.

A camera is given as NAME=DEVICE[,OPTION…]. NAME is the policy's (`laptop` or
`observation.images.laptop`). DEVICE is a V4L2 device (an index, or better a
path under /dev/v4l/by-id, which survives replugging), `file:PATH` (a video, a
folder of pictures or an .npz) or `sim:PATH` (a frames file). Options: `noisy`
(two equal pictures in a row mean a frozen sensor), `WIDTHxHEIGHT`, `NNfps`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vla_edge.contract import Frame
from vla_edge.errors import CameraError, ConfigError

PREFIX = "observation.images."


@dataclass(frozen=True, slots=True)
class CameraOptions:
    """One camera as the user named it. kind: "v4l2", "file" or "sim". height, width in pixels and fps are what is
    asked of the device (0: its default)."""

    name: str
    kind: str
    device: str
    height: int = 0
    width: int = 0
    fps: int = 0
    noisy: bool = False


class Camera(Protocol):
    """An open camera. `newest` never waits for the device longer than its first picture takes."""

    name: str
    exempt_from_freshness: bool
    """A file's pictures are not taken when they are read: no freshness can be asked of them."""

    def newest(self) -> Frame:
        """The newest picture; the same `sequence` again when no newer one came. CameraError: none can come."""

    def close(self) -> None: ...


def parse_camera(text: str) -> CameraOptions:
    """`NAME=DEVICE[,OPTION…]` as CameraOptions; ConfigError tells the form and the part that does not fit."""
    name, equals, rest = text.partition("=")
    device, *words = rest.split(",")
    if not equals or not re.fullmatch(r"[\w.]+", name) or not device:
        raise ConfigError(f"camera {text!r} is not NAME=DEVICE; for example laptop=/dev/v4l/by-id/usb-...-index0 or phone=file:clip.mp4")
    height = width = fps = 0
    noisy = False
    for word in words:
        if word == "noisy":
            noisy = True
        elif size := re.fullmatch(r"(\d+)x(\d+)", word):
            width, height = int(size[1]), int(size[2])
        elif rate := re.fullmatch(r"(\d+)fps", word):
            fps = int(rate[1])
        else:
            raise ConfigError(f"camera {name}: unknown option {word!r}; known: noisy, WIDTHxHEIGHT, NNfps")
    kind, colon, path = device.partition(":")
    if colon and kind in ("file", "sim"):
        if not path:
            raise ConfigError(f"camera {name}: {kind}: needs a path")
        device = path
    elif re.fullmatch(r"\d+", device) or device.startswith("/"):
        kind = "v4l2"
    else:
        raise ConfigError(f"camera {name}: {device!r} is no device; give an index, a path such as /dev/video0, file:PATH or sim:PATH")
    return CameraOptions(full_name(name), kind, device, height, width, fps, noisy)


def parse_cameras(texts: Sequence[str]) -> tuple[CameraOptions, ...]:
    """Every `--camera` of a command line; ConfigError when a name is given twice."""
    options = tuple(parse_camera(text) for text in texts)
    names = [option.name for option in options]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"camera {name} is given {names.count(name)} times; give each name once")
    return options


def full_name(name: str) -> str:
    """`laptop` → `observation.images.laptop`; a full name stays."""
    return name if name.startswith(PREFIX) else PREFIX + name


def short_name(name: str) -> str:
    """`observation.images.laptop` → `laptop`."""
    return name.removeprefix(PREFIX)


def open_camera(options: CameraOptions) -> Camera:
    """The camera `options` names. Errors: CameraError (missing device or file, wrong picture size)."""
    if options.kind == "sim":
        from vla_edge.robot.frames import SimCamera

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

    def __init__(self, name: str, noisy: bool, exempt: bool, limit_s: float = 1.0, equal_s: float = 1.0) -> None:
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
        still_ns = max(now_ns - self._advanced_ns, now_ns - frame.captured_ns)
        if still_ns > self._limit_ns:
            raise CameraError(f"camera {self._name} is frozen: no new picture for {still_ns / 1e9:.1f} s (limit {self._limit_ns / 1e9:.1f} s); check its cable")
        if self._noisy and now_ns - self._changed_ns > self._equal_ns:
            raise CameraError(
                f"camera {self._name} is frozen: every picture was the same for {(now_ns - self._changed_ns) / 1e9:.1f} s"
                f" (limit {self._equal_ns / 1e9:.1f} s, declared noisy); replug it"
            )
