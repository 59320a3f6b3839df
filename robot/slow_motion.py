# SPDX-License-Identifier: Apache-2.0
"""Slow, limited motions without the control process: first contact with one joint, and parking.

The loop here is for a person who stands beside the arm: low speed, goals inside the calibrated range, an end as soon as
the arm does not follow. `vla-runtime control` has its own loop and its own `park`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vla_edge.errors import BusError, JointCalibrationError
from vla_edge.fields import read_object
from vla_edge.files import write_json
from vla_edge.robot.joint_calibration import JointCalibrations
from vla_edge.robot.servo_arm import ArmReading, ServoArm

PERIOD_S = 0.02
AT_REST = 32.0
"""counts/s (2.8 °/s): below this a joint stands still."""


@dataclass(frozen=True, slots=True)
class SlowLimits:
    """speed: counts/s (341 is 30°/s). settle_s: time allowed to come to rest.

    tracking: how far a joint may be from its goal, counts; position control without an integral term hangs some
    degrees below its goal under gravity.
    """

    speed: float = 341.0
    tracking: int = 300
    settle_s: float = 1.5


def ramp(start: Sequence[int], goal: Sequence[int], step: float) -> Iterator[tuple[int, ...]]:
    """Goals from `start` to `goal`, no joint further than `step` counts at a time, all arriving together."""
    longest = max((abs(b - a) for a, b in zip(start, goal)), default=0)
    count = max(1, -(-longest // max(1, int(step))))
    for i in range(1, count + 1):
        yield tuple(round(a + (b - a) * i / count) for a, b in zip(start, goal))


def move_slowly(
    arm: ServoArm, goal: Mapping[str, int], limits: SlowLimits, sleep: Callable[[float], None] = time.sleep
) -> tuple[int, ...]:
    """Bring the joints of `goal` (counts) there, hold the others; returns the present positions at the end.

    Torque is switched on (goals become the present position first) and stays on. Errors: BusError naming the joint
    when a goal is outside its range, a servo reports an alert or stopped because it heard nothing, or the arm does not
    follow: its goals are then put back to where it stands.
    """
    for name, counts in goal.items():
        joint = arm.calibration.joint(name)
        if not joint.range_min <= counts <= joint.range_max:
            raise BusError(
                f"{name}: goal {counts} counts is outside its calibrated range {joint.range_min}..{joint.range_max}; "
                "choose a value inside"
            )
    arm.read()  # a bus that is too slow is told of before there is torque
    arm.set_torque(True)
    start = arm.read().positions
    target = tuple(goal.get(name, position) for name, position in zip(arm.joints, start))
    for goals in ramp(start, target, limits.speed * PERIOD_S):
        arm.write_goals(goals)
        sleep(PERIOD_S)
        _follow(arm, goals, limits.tracking)
    for _ in range(int(limits.settle_s / PERIOD_S)):
        reading = _follow(arm, target, limits.tracking)
        if all(abs(velocity) * arm.velocity_unit <= AT_REST for velocity in reading.velocities):
            _check_heard(arm)
            return reading.positions
        sleep(PERIOD_S)
    raise BusError(
        f"{_farthest(arm, reading.positions, target)} and does not come to rest; look at the arm, then try a lower "
        "--speed"
    )


def _follow(arm: ServoArm, goals: Sequence[int], tracking: int) -> ArmReading:
    """A reading that is near `goals`; otherwise the arm is stopped where it is."""
    reading = arm.read()
    alerts = [name for name, alert in zip(arm.joints, reading.alerts) if alert]
    if alerts:
        raise BusError(
            f"{alerts[0]} reports a hardware alert and the motion was stopped; remove the cause, then switch its "
            "power off and on"
        )
    if any(abs(a - b) > tracking for a, b in zip(reading.positions, goals)):
        arm.write_goals(reading.positions)
        _check_heard(arm)
        raise BusError(
            f"{_farthest(arm, reading.positions, goals)}: more than {tracking}; the motion was stopped, remove what "
            "blocks it"
        )
    return reading


def _check_heard(arm: ServoArm) -> None:
    """BusError: a servo stopped under way, as it does where it hears nothing for a while."""
    if stopped := arm.stopped():
        raise BusError(
            f"{stopped[0]} heard nothing for too long and stopped where it is; end what keeps this machine busy, and "
            "move again"
        )


def _farthest(arm: ServoArm, positions: Sequence[int], goals: Sequence[int]) -> str:
    lag, name = max((abs(a - b), name) for name, a, b in zip(arm.joints, positions, goals))
    return f"{name} is {lag} counts from its goal"


def park_pose_path(calibration: JointCalibrations) -> Path:
    """Where the parking pose of this arm is kept: beside its calibration file."""
    return Path(calibration.source).with_suffix(".park.json")


def load_park_pose(calibration: JointCalibrations) -> dict[str, int]:
    """Goal counts per joint. Errors: JointCalibrationError when none is stored or it does not fit the calibration."""
    path = park_pose_path(calibration)
    pose = read_object(
        path,
        JointCalibrationError,
        "store the parking pose again",
        "no parking pose; rest the limp arm safely and run `vla-runtime move --store-park` with its --port and "
        "--joints",
    )
    names = [joint.name for joint in calibration.joints]
    if sorted(pose) != sorted(names):
        raise JointCalibrationError(
            f"{path}: not one number per joint ({', '.join(names)}); store the parking pose again"
        )
    for joint in calibration.joints:
        counts = pose[joint.name]
        if isinstance(counts, bool) or not isinstance(counts, int) or not joint.range_min <= counts <= joint.range_max:
            raise JointCalibrationError(
                f"{path}: {joint.name} is {counts!r:.40}, its range is {joint.range_min}..{joint.range_max}; store "
                "the parking pose again"
            )
    return pose


def save_park_pose(calibration: JointCalibrations, positions: Sequence[int]) -> Path:
    """Store where the arm rests (counts, brought inside the calibrated range); returns the file."""
    path = park_pose_path(calibration)
    pose = {
        joint.name: min(max(counts, joint.range_min), joint.range_max)
        for joint, counts in zip(calibration.joints, positions)
    }
    write_json(path, pose, indent=2)
    return path
