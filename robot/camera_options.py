# SPDX-License-Identifier: Apache-2.0
"""What a camera is asked to be, as the user wrote it.

A camera is given as NAME=DEVICE[,OPTION…]. NAME is the policy's (`laptop`, `top-cam` or `observation.images.laptop`).
DEVICE is a V4L2 device (an index, or better a path under /dev/v4l/by-id, which survives replugging), `file:PATH` (a
video, a folder of pictures or an .npz; a path to one that is there needs no `file:`) or `sim:PATH` (a frames file).
Options: `noisy` (two equal pictures in a row mean a frozen sensor), `WIDTHxHEIGHT` (after turning, as in LeRobot),
`NNfps`, `fourcc=MJPG` (the device's pixel format; two cameras on one hub often need MJPG), `rotation=90|180|270`
(degrees clockwise that pictures are turned by, as LeRobot's `rotation`; −90 is 270).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vla_edge.camera_names import feature_key
from vla_edge.errors import ConfigError


@dataclass(frozen=True, slots=True)
class CameraOptions:
    """One camera as the user named it. kind: "v4l2", "file" or "sim". height, width in pixels of the turned picture and
    fps are what is asked of the device (0: its default). fourcc: its pixel format ("": its default). rotation: degrees
    clockwise, 0, 90, 180 or 270."""

    name: str
    kind: str
    device: str
    height: int = 0
    width: int = 0
    fps: int = 0
    noisy: bool = False
    fourcc: str = ""
    rotation: int = 0

    def turned(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """image: uint8 [height, width, 3] as the device gives it."""
        return np.ascontiguousarray(np.rot90(image, -self.rotation // 90)) if self.rotation else image


def parse_camera(text: str) -> CameraOptions:
    """`NAME=DEVICE[,OPTION…]` as CameraOptions; ConfigError tells the form and the part that does not fit."""
    name, equals, rest = text.partition("=")
    device, *words = rest.split(",")
    name = name.strip()
    if not equals or not re.fullmatch(r"[^,/]+", name) or not device:
        raise ConfigError(
            f"camera {text!r} is not NAME=DEVICE; for example laptop=/dev/v4l/by-id/usb-...-index0 or "
            "phone=file:clip.mp4"
        )
    height = width = fps = rotation = 0
    noisy, fourcc = False, ""
    for word in words:
        if word == "noisy":
            noisy = True
        elif size := re.fullmatch(r"(\d+)x(\d+)", word):
            width, height = int(size[1]), int(size[2])
        elif rate := re.fullmatch(r"(\d+)fps", word):
            fps = int(rate[1])
        elif code := re.fullmatch(r"fourcc=([\w ]{4})", word):
            fourcc = code[1]
        elif turn := re.fullmatch(r"rotation=(0|-?90|180|270)", word):
            rotation = int(turn[1]) % 360
        else:
            raise ConfigError(
                f"camera {name}: unknown option {word!r}; known: noisy, WIDTHxHEIGHT, NNfps, fourcc=MJPG, "
                "rotation=90|180|270"
            )
    kind, colon, path = device.partition(":")
    if colon and kind in ("file", "sim"):
        if not path:
            raise ConfigError(f"camera {name}: {kind}: needs a path")
        device = path
    elif not device.isdigit() and (Path(device).is_dir() or (Path(device).suffix and Path(device).is_file())):
        kind = "file"
    elif re.fullmatch(r"\d+", device) or device.startswith("/"):
        kind = "v4l2"
    else:
        raise ConfigError(
            f"camera {name}: {device!r} is no device and no file that is there; give an index, a path such as "
            "/dev/video0, file:PATH or sim:PATH"
        )
    if fourcc and kind != "v4l2":
        raise ConfigError(f"camera {name}: fourcc={fourcc} is a device's pixel format; leave it out for {kind}:")
    if rotation and kind == "sim":
        raise ConfigError(f"camera {name}: the simulated camera is not turned; leave rotation={rotation} out")
    return CameraOptions(feature_key(name), kind, device, height, width, fps, noisy, fourcc, rotation)


def parse_cameras(texts: Sequence[str]) -> tuple[CameraOptions, ...]:
    """Every `--camera` of a command line; ConfigError when a name is given twice."""
    options = tuple(parse_camera(text) for text in texts)
    names = [option.name for option in options]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"camera {name} is given {names.count(name)} times; give each name once")
    return options
