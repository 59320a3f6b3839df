"""What stands behind the emulated servos: the mechanics.

The servo's firmware (profile, torque switch, watchdog) is emulated; where the
shaft then really is comes from a `Plant`. The simulated arm is one, the ideal
arm below another. A plant is stepped on the emulator's clock and never waits.
"""

from __future__ import annotations

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

        setpoints: what each servo's position controller is driven to since the
        last call, encoder counts; None: no torque. Called at least every 2 ms of
        emulated time, also while nobody talks on the bus.
        """
        ...


class IdealPlant:
    """Shafts that follow their setpoints exactly and stay where they are without torque."""

    def __init__(self, positions: Sequence[float]) -> None:
        self._positions = list(positions)
        self._last_ns: int | None = None

    def push(self, servo: int, counts: float) -> None:
        """Turn shaft number `servo` to `counts` by hand; one under torque snaps back at the next step."""
        self._positions[servo] = counts

    def step(self, setpoints: Sequence[float | None], now_ns: int) -> PlantState:
        before = list(self._positions)
        for i, setpoint in enumerate(setpoints):
            if setpoint is not None:
                self._positions[i] = setpoint
        elapsed = (now_ns - self._last_ns) / 1e9 if self._last_ns is not None else 0.0
        self._last_ns = now_ns
        velocities = [(now - then) / elapsed if elapsed > 0 else 0.0 for now, then in zip(self._positions, before)]
        return PlantState(list(self._positions), velocities, [0.0] * len(before))
