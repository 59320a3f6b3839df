# SPDX-License-Identifier: Apache-2.0
"""LeRobot's SO-101 on a serial port, asked through lerobot_side.py: one robot, opened and used question by question."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

Request = dict[str, Any]
ROBOT: list[Any] = []


def so101_open(request: Request) -> dict[str, Any]:
    """The handshake, then its settings: port, id, folder (of the calibration). missing: its servo package."""
    if find_spec("scservo_sdk") is None:
        return {"missing": "feetech-servo-sdk"}
    from lerobot.robots.so_follower import SO101Follower, SO101FollowerConfig

    robot = SO101Follower(
        SO101FollowerConfig(port=request["port"], id=request["id"], calibration_dir=Path(request["folder"]))
    )
    robot.connect(calibrate=False)
    ROBOT[:] = [robot]
    return {"calibrated": robot.is_calibrated}


def so101_calibration(_: Request) -> dict[str, Any]:
    """What the servos' EEPROM says."""
    found = ROBOT[0].bus.read_calibration()
    return {"joints": {name: vars(joint) for name, joint in found.items()}}


def so101_recalibrate(request: Request) -> dict[str, Any]:
    """LeRobot's way to new offsets, the arm in its middle pose; then the whole calibration of its file written again:
    the offsets it set, and where the joints showed to stand between the two."""
    bus = ROBOT[0].bus
    with bus.torque_disabled():
        offsets = bus.set_half_turn_homings()
        middle = bus.sync_read("Present_Position", normalize=False)
        bus.write_calibration(ROBOT[0].calibration)
    return {"offsets": offsets, "middle": middle}


def so101_read(request: Request) -> dict[str, Any]:
    """One register of every joint, decoded, by its name."""
    return {"values": ROBOT[0].bus.sync_read(request["register"], normalize=False)}


def so101_observe(_: Request) -> dict[str, Any]:
    return {"joints": ROBOT[0].get_observation()}


def so101_send(request: Request) -> dict[str, Any]:
    ROBOT[0].send_action(request["action"])
    return {}


def so101_close(_: Request) -> dict[str, Any]:
    ROBOT.pop().disconnect()
    return {}


DO: dict[str, Callable[[Request], dict[str, Any]]] = {
    work.__name__: work
    for work in (so101_open, so101_calibration, so101_recalibrate, so101_read, so101_observe, so101_send, so101_close)
}
