# SPDX-License-Identifier: Apache-2.0
"""What stands behind the emulated servos: the mechanics.

The servo's firmware (profile, torque switch, watchdog) is emulated; where the
shaft then really is comes from a `Plant`. The simulated arm is one, the ideal
arm below another. A plant is stepped on the emulator's clock and never waits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class PlantState:
    """Where the shafts are, one entry per servo in bus order.

    positions: encoder counts (4096 a turn), before homing offset and drive mode.
    velocities: counts/s. currents: mA, sign as the torque's.
    """

    positions: Sequence[float]
    velocities: Sequence[float]
    currents: Sequence[float]


class Plant(Protocol):
    """The mechanics behind the servos."""

    def step(self, setpoints: Sequence[float | None], now_ns: int) -> PlantState:
        """Advance to `now_ns` (CLOCK_MONOTONIC, never backwards) and return the state there.

        setpoints: what each servo's position controller is driven to since the last call, encoder counts; None: no
        torque. Called at least every 2 ms of emulated time, also while nobody talks on the bus.
        """
        ...

    def block(self, servo: int, low: float, high: float) -> None:
        """Obstacles at both sides of shaft number `servo`, encoder counts; infinite: the way is free."""
        ...


class IdealPlant:
    """Shafts that follow their setpoints but for what hangs on them and stands in their way.

    Under torque a shaft rests `sag` counts from its setpoint, as under a P controller, and presses against an
    obstacle with the counts that are left: they are its current. Without torque it stays where it is.
    """

    def __init__(self, positions: Sequence[float]) -> None:
        self._positions = list(positions)
        self._sag = [0.0] * len(positions)
        self._ways = [(-math.inf, math.inf)] * len(positions)
        self._last_ns: int | None = None

    def push(self, servo: int, counts: float) -> None:
        """Turn shaft number `servo` to `counts` by hand; one under torque snaps back at the next step."""
        self._positions[servo] = counts

    def block(self, servo: int, low: float, high: float) -> None:
        self._ways[servo] = low, high

    def sag(self, servo: int, counts: float) -> None:
        """Hang something on shaft number `servo`: it rests `counts` further on than its setpoint."""
        self._sag[servo] = counts

    def step(self, setpoints: Sequence[float | None], now_ns: int) -> PlantState:
        before = list(self._positions)
        currents = [0.0] * len(before)
        for i, setpoint in enumerate(setpoints):
            low, high = self._ways[i]
            if setpoint is not None:
                self._positions[i] = setpoint + self._sag[i]
            self._positions[i] = min(max(self._positions[i], low), high)
            if setpoint is not None:
                currents[i] = setpoint - self._positions[i]
        elapsed = (now_ns - self._last_ns) / 1e9 if self._last_ns is not None else 0.0
        self._last_ns = now_ns
        velocities = [(now - then) / elapsed if elapsed > 0 else 0.0 for now, then in zip(self._positions, before)]
        return PlantState(list(self._positions), velocities, currents)
