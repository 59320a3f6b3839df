# SPDX-License-Identifier: Apache-2.0
"""`vla-runtime calibrate-joints`: a person moves the limp arm, the counts become the calibration.

As LeRobot calibrates it: homing offsets put the middle pose at count 2047, the ranges are recorded by hand, the joints
that can turn freely get a whole turn. The servos' EEPROM and the file end up equal, or neither is usable: the file is
written last. Torque is off all the time.
"""

from __future__ import annotations

import argparse
import select
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from rich.live import Live
from rich.table import Table

from vla_edge.command_line import answer, file_to_write
from vla_edge.contract import JointCalibration
from vla_edge.errors import JointCalibrationError
from vla_edge.robot.arm_description import load_arm
from vla_edge.robot.joint_calibration import save_joint_calibration
from vla_edge.robot.port import check_latency_timer
from vla_edge.robot.robot_file import add_arm, add_port, add_robot_file
from vla_edge.robot.servo_arm import ArmResult, check_servos, switch_torque
from vla_edge.robot.servo_bus import ServoBus

MIDDLE = 2047
SMALLEST_RANGE = 200
"""Counts (18°): a recorded range below this means that the joint was not moved."""


class Person(Protocol):
    """Who moves the arm. Errors: JointCalibrationError when nobody is there any more."""

    def ask(self, text: str) -> None:
        """Show `text` and wait for Enter."""
        ...

    def show(self, ranges: Mapping[str, tuple[int, int, int]]) -> bool:
        """Show lowest, present and highest count per joint; True when Enter was pressed since the last call."""
        ...


class TerminalPerson:
    """A person at the terminal: a table of live counts between two Enters."""

    def __init__(self) -> None:
        self._live = Live(auto_refresh=False, transient=True)

    def ask(self, text: str) -> None:
        print(f"{text}\n  … then press Enter", flush=True)
        self._line()

    def show(self, ranges: Mapping[str, tuple[int, int, int]]) -> bool:
        table = Table("joint", "lowest", "now", "highest", title="Enter when every joint was at both ends")
        for joint, counts in ranges.items():
            table.add_row(joint, *map(str, counts))
        self._live.start()
        self._live.update(table, refresh=True)
        if not select.select([sys.stdin], [], [], 0)[0]:
            return False
        self.close()
        self._line()
        return True

    def close(self) -> None:
        """Give the terminal back; also after an error."""
        self._live.stop()

    @staticmethod
    def _line() -> None:
        if not sys.stdin.readline():
            raise JointCalibrationError("nobody answers on standard input; run calibrate-joints in a terminal")


def calibrate_joints(
    bus: ServoBus, person: Person, sleep: Callable[[float], None] = time.sleep
) -> list[JointCalibration]:
    """Guide `person`, write the EEPROM, return the calibration. Errors: BusError, JointCalibrationError."""
    arm = bus.arm
    last = arm.counts_per_turn - 1
    check_servos(bus)
    if any(bus.read_all(arm.at("torque")).values()):
        person.ask("The arm holds itself and will go limp now: hold it")
    if switch_torque(bus, False) != ArmResult.OK:
        torque = [joint for joint, on in bus.read_all(arm.at("torque")).items() if on]
        raise JointCalibrationError(
            f"torque of {', '.join(torque) or 'the arm'} does not switch off; switch the power off and on"
        )
    # Drive mode is kept: it says how the servo is mounted, not where its range lies.
    drive_modes = (
        bus.read_all(arm.register("drive_mode")) if "drive_mode" in arm.checked else dict.fromkeys(bus.joints, 0)
    )
    for joint, mode in drive_modes.items():
        if mode not in (0, 1):
            raise JointCalibrationError(
                f"{joint}: drive mode is {mode}, it must be 0 or 1 (reversed); set it with {arm.tool}"
            )
    offset, lowest, highest = (arm.register(arm.checked[name]) for name in ("homing_offset", "range_min", "range_max"))
    for register, value in ((offset, 0), (lowest, 0), (highest, last)):
        bus.write_where_different(register, dict.fromkeys(bus.joints, value))
    bus.write_where_different(arm.register("operating_mode"), {joint.name: joint.mode for joint in arm.joints})

    person.ask("The arm is limp: hold it. Move every joint to the middle of its range (gripper half open)")
    middle = bus.read_all(arm.at("position"))
    for joint, position in middle.items():
        if arm.multi_turn:
            _check_turn(joint, position, position, drive_modes[joint], last)
    wanted = {joint: arm.homing_sign * (MIDDLE - position) for joint, position in middle.items()}
    homing = {
        joint: offset.decode(offset.encode(value)) for joint, value in wanted.items()
    }  # what the register can hold
    bus.write_where_different(offset, homing)

    moved = [joint.name for joint in arm.joints if not joint.full_turn]
    person.ask(
        f"Now move these joints one after the other from end to end: {', '.join(moved)}. Press Enter to begin, and "
        "again when done"
    )
    ranges = _record_ranges(bus, moved, person, sleep)
    joints = []
    for joint in arm.joint_names:
        low, high = ranges[joint] if joint in moved else (0, last)
        joints.append(
            JointCalibration(
                joint, bus.joints[joint], drive_modes[joint], homing[joint], low, high, arm.counts_per_turn
            )
        )
        if high - low < SMALLEST_RANGE:
            raise JointCalibrationError(
                f"{joint} moved only {high - low} counts, at least {SMALLEST_RANGE} are needed; calibrate again and "
                "move it from end to end"
            )
        if low < 0 or high > last:
            raise JointCalibrationError(
                f"{joint} moved over {low}..{high}, outside 0..{last}; calibrate again and start nearer to the "
                "middle of its range"
            )
        if joint in moved and arm.multi_turn:
            _check_turn(joint, low - homing[joint], high - homing[joint], drive_modes[joint], last)
    limits = ((lowest, "range_min"), (highest, "range_max"))
    for register, field in limits:
        bus.write_where_different(register, {joint.name: getattr(joint, field) for joint in joints})
    return joints


def _check_turn(joint: str, low: int, high: int, drive_mode: int, turn: int) -> None:
    """JointCalibrationError when these counts (without homing offset) leave the encoder's one turn.

    With its power the servo forgets how often it has turned: behind the end it would come back a turn away from its
    calibration, and be refused for ever.
    """
    first, last = (-turn, 0) if drive_mode else (0, turn)
    if first <= low and high <= last:
        return
    counts = str(low) if low == high else f"{low}..{high}"
    raise JointCalibrationError(
        f"{joint} was at {counts} counts, past the end of its encoder ({first}..{last}): after a power cycle its "
        "calibration would be a turn off; put it in the middle of its range, switch the servos' power off and on, and "
        "calibrate again (if this comes again: turn its horn by half a turn)"
    )


def _record_ranges(
    bus: ServoBus, moved: Sequence[str], person: Person, sleep: Callable[[float], None]
) -> dict[str, tuple[int, int]]:
    position_of = bus.arm.at("position")
    positions = bus.read_all(position_of)
    ranges = {joint: (position, position) for joint, position in positions.items()}
    done = False
    while not done:
        positions = bus.read_all(position_of)
        for joint, position in positions.items():
            low, high = ranges[joint]
            ranges[joint] = min(low, position), max(high, position)
        done = person.show({joint: (ranges[joint][0], positions[joint], ranges[joint][1]) for joint in moved})
        sleep(0.02)
    return ranges


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_arm(parser)
    add_port(parser)
    parser.add_argument("--joints", type=file_to_write, required=True, help="joint calibration to write")
    parser.add_argument("--replace", action="store_true", help="replace an existing file")
    add_robot_file(parser)


def run(arguments: argparse.Namespace) -> int:
    path: Path = arguments.joints
    if path.exists() and not arguments.replace:
        raise JointCalibrationError(f"{path} exists; give another name, or --replace to calibrate this arm anew")
    check_latency_timer(arguments.port)
    bus = ServoBus(arguments.port, load_arm(arguments.robot))
    person = TerminalPerson()
    try:
        joints = calibrate_joints(bus, person)
    finally:
        person.close()
        bus.close()
    save_joint_calibration(joints, path)
    for joint in joints:
        print(f"{joint.name:<14} homing {joint.homing_offset:>6}  range {joint.range_min}..{joint.range_max}")
    print(f"written to the servos and to {path}")
    answer({"file": str(path), "joints": [asdict(joint) for joint in joints]})
    return 0
