# SPDX-License-Identifier: Apache-2.0
"""`vla-runtime cameras`: which device is which name, with a picture of each on one contact sheet."""

from __future__ import annotations

import argparse
import fcntl
import os
import struct
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from vla_edge.camera_names import short_name
from vla_edge.command_line import answer, file_to_write, not_negative
from vla_edge.errors import CameraError, CheckFailed
from vla_edge.files import write_bytes
from vla_edge.robot.camera_options import CameraOptions, parse_cameras
from vla_edge.robot.cameras import open_camera

_TILE = (240, 320)
_CAPTION = 24
_COLUMNS = 3


NOT_COLOUR = {"Z16 ", "INVZ", "INVI", "INZI", "GREY", "Y8I ", "Y10 ", "Y12 ", "Y12I", "Y16 ", "Y16I", "CNF4"}
"""Pixel formats of depth and infrared pictures (V4L2's codes)."""
_ENUM_FMT, _VIDEO_CAPTURE = 0xC0405602, 1
"""VIDIOC_ENUM_FMT and the buffer type of pictures, linux/videodev2.h."""


def pixel_formats(device: str) -> list[str] | None:
    """Codes of the pictures that a V4L2 node gives; none for a metadata node; None where it cannot be asked."""
    try:
        node = os.open(device, os.O_RDWR | os.O_NONBLOCK)
    except OSError:
        return None
    found: list[str] = []
    try:
        while True:
            request = bytearray(struct.pack("=III", len(found), _VIDEO_CAPTURE, 0) + bytes(52))
            fcntl.ioctl(node, _ENUM_FMT, request)
            found.append(request[44:48].decode("latin-1"))
    except OSError:  # past the last one
        return found
    finally:
        os.close(node)


@dataclass(frozen=True)
class DeviceReport:
    """One camera: what it was called by, what the driver calls it, and its picture or why there is none."""

    name: str
    device: str
    driver_name: str
    size: str
    fault: str
    picture: NDArray[np.uint8] | None


def list_v4l2(
    system: Path = Path("/sys/class/video4linux"),
    by_id: Path = Path("/dev/v4l/by-id"),
    by_path: Path = Path("/dev/v4l/by-path"),
    formats: Callable[[str], Sequence[str] | None] = pixel_formats,
) -> list[tuple[str, str]]:
    """(device path, driver's name) of each node that gives colour pictures, by a path that stays when it is replugged.

    That is its link under `by_id`; of cameras of one model without serial numbers, which share a link there, the one
    under `by_path` (which socket it is plugged into). A node whose formats cannot be asked is taken to give pictures
    where its number among its camera's nodes is even: the odd ones carry metadata.
    """
    if not system.is_dir():
        return []
    nodes = []
    for entry in sorted(system.iterdir(), key=lambda path: (len(path.name), path.name)):
        path, found = f"/dev/{entry.name}", formats(f"/dev/{entry.name}")
        index = _line(entry / "index")
        if not (int(index or 0) % 2 == 0 if found is None else set(found) - NOT_COLOUR):
            continue
        nodes.append((path, _line(entry / "name"), index))
    ids, sockets = _links(by_id), _links(by_path)
    devices = []
    for path, name, index in nodes:
        twins = [other for other, *kind in nodes if kind == [name, index]]
        shared = any(other not in ids for other in twins)  # one link for all of them names whichever came last
        links = (sockets, {}) if shared and len(twins) > 1 else (ids, sockets)
        devices.append((next((found[path] for found in links if path in found), path), name))
    return devices


def _line(file: Path) -> str:
    return file.read_text().strip() if file.is_file() else ""


def _links(folder: Path) -> dict[str, str]:
    """Device → a link to it in `folder`."""
    return {os.path.realpath(link): str(link) for link in sorted(folder.iterdir())} if folder.is_dir() else {}


def look_at(options: CameraOptions, driver_name: str, settle_s: float) -> DeviceReport:
    """Open one camera, wait `settle_s` for its exposure, take a picture. A fault is reported, not raised."""
    picture, fault = None, ""
    try:
        camera = open_camera(options)
        try:
            if options.kind == "v4l2":
                time.sleep(settle_s)
            picture = camera.newest().image
        finally:
            camera.close()
    except CameraError as error:
        fault = str(error)
    size = "" if picture is None else f"{picture.shape[1]}x{picture.shape[0]}"
    return DeviceReport(options.name, options.device, driver_name, size, fault, picture)


def contact_sheet(reports: Iterable[DeviceReport]) -> NDArray[np.uint8]:
    """The pictures with their names beneath, uint8 [h, w, 3] RGB; a grey tile where there is no picture."""
    height, width = _TILE
    tiles = []
    for report in reports:
        tile = np.full((height + _CAPTION, width, 3), 90, np.uint8)
        if report.picture is not None:
            scale = min(width / report.picture.shape[1], height / report.picture.shape[0])
            size = (max(1, int(report.picture.shape[1] * scale)), max(1, int(report.picture.shape[0] * scale)))
            small = cv2.resize(report.picture, size, interpolation=cv2.INTER_AREA)
            tile[: small.shape[0], : small.shape[1]] = small
        caption = f"{short_name(report.name)}  {report.device}"[-44:]
        cv2.putText(tile, caption, (4, height + 16), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (255, 255, 255), 1, cv2.LINE_AA)
        tiles.append(tile)
    while len(tiles) > _COLUMNS and len(tiles) % _COLUMNS:
        tiles.append(np.zeros_like(tiles[0]))
    rows = [np.concatenate(tiles[i : i + _COLUMNS], axis=1) for i in range(0, len(tiles), _COLUMNS)]
    return np.concatenate(rows, axis=0)


def report_cameras(texts: Sequence[str], out: Path, settle_s: float) -> list[DeviceReport]:
    """Look at the named cameras, or at every V4L2 device when none is named, and write the contact sheet to `out`.

    Errors: CameraError when there is no camera at all or the sheet cannot be written.
    """
    found = dict(list_v4l2())
    if texts:
        options = parse_cameras(texts)
    else:
        options = tuple(CameraOptions(f"camera{index}", "v4l2", device) for index, device in enumerate(found))
    if not options:
        raise CameraError(
            "no camera found: there is no V4L2 device here; plug one in, or name one with --camera NAME=DEVICE"
        )
    reports = [look_at(option, found.get(option.device, ""), settle_s) for option in options]
    encoded, data = cv2.imencode(".png", cv2.cvtColor(contact_sheet(reports), cv2.COLOR_RGB2BGR))
    if not encoded or not out.parent.is_dir():
        raise CameraError(f"{out}: the contact sheet cannot be written; choose a folder that exists")
    write_bytes(out, data.tobytes())
    return reports


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--camera",
        action="append",
        default=[],
        metavar="NAME=DEVICE",
        help="look at this one (repeat); default: every V4L2 device",
    )
    parser.add_argument(
        "--out", type=file_to_write, default=Path("cameras.png"), help="contact sheet to write (default: cameras.png)"
    )
    parser.add_argument(
        "--settle",
        type=not_negative,
        default=0.7,
        metavar="SECONDS",
        help="time a camera gets for its exposure (default: 0.7)",
    )


def run(arguments: argparse.Namespace) -> int:
    reports = report_cameras(arguments.camera, arguments.out, arguments.settle)
    for report in reports:
        print(
            f"{short_name(report.name):<14}{report.device:<44}{report.size or 'FAULT':<11}"
            f"{report.fault or report.driver_name}"
        )
    print(f"pictures: {arguments.out}")
    rows = [{key: value for key, value in asdict(report).items() if key != "picture"} for report in reports]
    answer({"cameras": rows, "sheet": str(arguments.out)})
    faults = [report for report in reports if report.fault]
    if faults:
        raise CheckFailed(f"{len(faults)} of {len(reports)} cameras gave no picture: {faults[0].fault}")
    return 0
