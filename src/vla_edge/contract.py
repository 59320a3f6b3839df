# SPDX-License-Identifier: Apache-2.0
"""What crosses the borders between cameras, inference and control.

Who writes and reads what: the robot room makes `Frame` and `JointReading`;
inference joins them to an `Observation` and makes a `Chunk` of it; the control
core (C) takes chunks and asks its guard.
All times are CLOCK_MONOTONIC nanoseconds of one machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Frame:
    """One camera picture.

    camera: the policy's key, e.g. ``observation.images.laptop``.
    image: uint8 [height, width, 3], RGB; not written to after it was handed over.
    captured_ns: when the picture was taken. sequence: counts up with every new
    picture of that camera; a repeated number is the same picture.
    """

    camera: str
    image: NDArray[np.uint8]
    captured_ns: int
    sequence: int


@dataclass(frozen=True, slots=True)
class JointReading:
    """Joint positions read in control tick `tick`: float32 [joints] in joint units.

    Joint units are those of the policy's dataset (degrees, or −100..100 with the
    gripper 0..100, as LeRobot's normalisation defines them).
    """

    tick: int
    time_ns: int
    positions: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Observation:
    """What one inference starts from. `frames` holds the cameras that are present."""

    sequence: int
    frames: Mapping[str, Frame]
    joints: JointReading
    task: str


class ChunkKind(IntEnum):
    """MOVING: action i is due i ticks after the observation's tick.
    REST: nothing moved since the observation; action 0 is due when accepted."""

    MOVING = 0
    REST = 1


@dataclass(frozen=True, slots=True)
class Chunk:
    """Actions planned from one observation: float32 [n, joints] in joint units."""

    kind: ChunkKind
    session: int
    bundle_digest: str
    observation_sequence: int
    observation_tick: int
    observation_ns: int
    actions: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class JointCalibration:
    """One servo's calibration, LeRobot's JSON fields, and the counts of a turn."""

    name: str
    id: int
    drive_mode: int
    homing_offset: int
    range_min: int
    range_max: int
    counts_per_turn: int = 4096

    @property
    def grips(self) -> bool:
        """A gripper, by its name: 0 to 100 in every unit."""
        return self.name.endswith("gripper")


class Command(IntEnum):
    """What an operator can ask of control; the same numbers as `pilot_command` in C."""

    NONE = 0
    PING = 1
    ARM = 2
    HOLD = 3
    PARK = 4
    STOP = 5
    TORQUE_OFF = 6
    TORQUE_OFF_NOW = 7
    RECOVER = 8
    REDO = 9
    PARK_IDLE = 10
