# SPDX-License-Identifier: Apache-2.0
"""What the runtime needs from an arm; another arm is one file that offers this."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from vla_edge.robot.joint_calibration import LinearMap


@dataclass(frozen=True, slots=True)
class ArmReading:
    """All joints at one moment. positions: counts; velocities, loads: servo units.

    time_ns: CLOCK_MONOTONIC when the reply was complete. alerts: hardware alert per joint.
    """

    time_ns: int
    positions: tuple[int, ...]
    velocities: tuple[int, ...]
    loads: tuple[int, ...]
    alerts: tuple[bool, ...]


class RobotArm(Protocol):
    """An arm whose start-up checks have passed. Errors: BusError, one line with the joint and the fix."""

    @property
    def joints(self) -> tuple[str, ...]:
        """Names in the order of every array."""
        ...

    @property
    def maps(self) -> tuple[LinearMap, ...]:
        """counts = scale · unit + offset per joint."""
        ...

    @property
    def velocity_unit(self) -> float:
        """counts/s of one unit of velocity."""
        ...

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """Soft position limits per joint: lowest and highest goal, counts."""
        ...

    @property
    def port(self) -> object:
        """The arm for the C control loop (capsule of an `arm_port`); valid until `close`."""
        ...

    def read(self) -> ArmReading: ...

    def write_goals(self, counts: Sequence[int]) -> None: ...

    def set_torque(self, on: bool) -> None:
        """On: goals become the present position first. Off: attempts every joint even if one fails."""
        ...

    def close(self) -> None:
        """Free the port; torque stays as it is."""
        ...
