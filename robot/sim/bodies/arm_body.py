# SPDX-License-Identifier: Apache-2.0
"""What a simulated arm is made of: its links, its servos, its place on the table; and its joint units.

Frame: x forward, y left, z up, metres, origin on the table under the pan axis. At zero the upper arm points up, forearm
and hand point forward; positive shoulder_lift, elbow_flex and wrist_flex turn the links forward and down.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vla_edge.contract import JointCalibration
from vla_edge.robot.joint_calibration import JointUnits, linear_map

COUNTS_PER_TURN = 4096
ZERO_COUNT = 2048
"""Servo count at which a simulated joint stands at 0 rad."""
RADIANS_PER_COUNT = 2 * np.pi / COUNTS_PER_TURN
STOP_RAD = 0.02
"""Assumed: mechanical stops give way a little and stand so far inside the range that a joint calibration would say, so
that an arm that leans on one is in range."""


@dataclass(frozen=True, slots=True)
class Servo:
    """A DC motor behind a P controller: torque = stiffness · error − damping · speed, at most `stall_nm`. So it sags
    under load and lags while moving, as the real ones do.

    stiffness N·m/rad; damping N·m·s/rad (back-EMF and viscous friction); armature kg·m²; friction N·m; ma_per_nm: motor
    current. low_rad, high_rad: what a joint calibration would say; stops: the mechanical ones.
    """

    stall_nm: float
    stiffness: float
    damping: float
    armature: float
    friction: float
    ma_per_nm: float
    low_rad: float
    high_rad: float
    stops: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Links:
    """Lengths at zero as (forward, up) in metres from one axis to the next; shoulder: from the point on the table under
    the pan axis to the lift axis; hand: from the wrist flex axis to the tip. pan_axis, roll_axis: +1 where a positive
    angle turns about z (to the left) and about x, −1 the other way round."""

    shoulder: tuple[float, float]
    upper_arm: tuple[float, float]
    forearm: tuple[float, float]
    hand: tuple[float, float]
    pan_axis: int = 1
    roll_axis: int = 1


@dataclass(frozen=True)
class ArmBody:
    """robot_type: LeRobot's name of it. servos: by joint, in the order of every array. worldbody: the links as MJCF,
    with a body `hand` and a site `tip`. cameras: name → MJCF attributes. near_m, far_m: cubes stand between these
    radii. rest_rad: the folded pose in which it waits. ready_rad: the middle of the poses in which it works."""

    name: str
    robot_type: str
    servos: Mapping[str, Servo]
    links: Links
    worldbody: str
    cameras: Mapping[str, str]
    near_m: float
    far_m: float
    rest_rad: tuple[float, ...]
    ready_rad: tuple[float, ...]

    @property
    def joints(self) -> tuple[str, ...]:
        return tuple(self.servos)

    @property
    def low_rad(self) -> NDArray[np.float64]:
        return np.array([servo.low_rad for servo in self.servos.values()])

    @property
    def high_rad(self) -> NDArray[np.float64]:
        return np.array([servo.high_rad for servo in self.servos.values()])

    def calibration(self) -> tuple[JointCalibration, ...]:
        """Its joint calibration: what a person would have measured on it."""
        lows, highs = counts_from_radians(self.low_rad), counts_from_radians(self.high_rad)
        rows = zip(self.joints, lows, highs)
        return tuple(
            JointCalibration(name, i + 1, 0, 0, int(low), int(high)) for i, (name, low, high) in enumerate(rows)
        )

    def units(self, angles: NDArray[np.float64]) -> NDArray[np.float64]:
        """Joint angles [..., joints] in joint units: degrees, the gripper 0..100 (closed..open)."""
        scale, offset = self._maps()
        return (angles / RADIANS_PER_COUNT + ZERO_COUNT - offset) / scale

    def radians(self, units: NDArray[np.float64]) -> NDArray[np.float64]:
        """Joint units [..., joints] as joint angles."""
        scale, offset = self._maps()
        return (np.asarray(units, np.float64) * scale + offset - ZERO_COUNT) * RADIANS_PER_COUNT

    def _maps(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        maps = [linear_map(row, JointUnits.DEGREES) for row in self.calibration()]
        return np.array([line.scale for line in maps]), np.array([line.offset for line in maps])


def counts_from_radians(angles: NDArray[np.float64]) -> NDArray[np.int32]:
    """Simulated joint angles as servo counts, int32 [joints]."""
    return np.rint(angles / RADIANS_PER_COUNT).astype(np.int32) + ZERO_COUNT


def radians_from_counts(counts: NDArray[np.int32]) -> NDArray[np.float64]:
    """Servo counts as simulated joint angles, float64 [joints]."""
    return (np.asarray(counts, np.float64) - ZERO_COUNT) * RADIANS_PER_COUNT


def chain(servos: Mapping[str, Servo], *links: tuple[str, str, str, str]) -> str:
    """The MJCF of links, each in the one before: name, place in that one's frame, axis of its joint, geometry. The
    first stands on the table; each of the others turns on the next of `servos`."""
    inside = ""
    for (name, place, axis, geometry), joint in reversed(list(zip(links, ["", *servos]))):
        turns = _joint(joint, axis, servos[joint]) if joint else ""
        inside = f'<body name="{name}" pos="{place}">{turns}{geometry}{inside}</body>'
    return inside


def _joint(name: str, axis: str, servo: Servo) -> str:
    return (
        f'<joint name="{name}" axis="{axis}" range="{servo.stops[0]:.5f} {servo.stops[1]:.5f}"'
        f' damping="{servo.damping:.5f}" armature="{servo.armature}" frictionloss="{servo.friction}"/>'
    )
