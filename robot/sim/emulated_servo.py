# SPDX-License-Identifier: Apache-2.0
"""What every emulated servo has: registers behind addresses, a shaft, and a profile between goal and setpoint.

A kind of servo is a class in `servos/` that says what its registers mean. Time is an argument: CLOCK_MONOTONIC ns.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping

from vla_edge.robot.arm_parts import Register
from vla_edge.robot.sim.framing import Language

RETURN_DELAY_UNIT_NS = 2_000
REBOOT_NS = 150_000_000


class EmulatedServo(ABC):
    """Registers and firmware of one servo; `raw` is its shaft in encoder counts.

    REGISTERS: all it has, by name; the others are those that the bus and its events speak of. speed_limit (counts/s)
    and acceleration (counts/s²) are the profile's, inf: none.
    """

    LANGUAGE: Language
    REGISTERS: Mapping[str, Register]
    TORQUE: Register
    GOAL: Register
    PRESENT: Register
    VOLTAGE: Register
    TEMPERATURE: Register
    BAUD: Register
    BAUD_CODES: Mapping[int, int]
    RETURN_DELAY: Register

    id: int
    torque: bool
    goal: int
    position: int
    speed_limit: float
    acceleration: float

    def __init__(self, raw: float) -> None:
        self.memory = bytearray(256)
        self.raw = raw
        self.velocity = 0.0
        """Profile velocity, register counts/s."""
        self.setpoint = 0.0
        """Where the profile has come to, as the register shows positions."""
        self.reboot_until_ns = 0
        self.last_heard_ns: int | None = None
        self.ignored: set[int] = set()
        """Addresses at which it answers a write as it should and takes nothing, until its power goes off and on."""

    def get(self, register: Register) -> int:
        return register.decode(bytes(self.memory[register.address : register.address + register.size]))

    def put(self, register: Register, value: int) -> None:
        """Set a register from inside: no access rules."""
        self.store(register, value)
        self.decode()

    def store(self, register: Register, value: int) -> None:
        """Change a register's bytes and nothing else."""
        self.memory[register.address : register.address + register.size] = register.encode(value)

    @abstractmethod
    def decode(self) -> None:
        """Keep what every step needs as numbers; called whenever a control register changed."""

    @property
    @abstractmethod
    def present(self) -> float:
        """Present position as the register shows it."""

    @abstractmethod
    def raw_of(self, shown: float) -> float:
        """The shaft's encoder counts when the register shows `shown`."""

    @property
    @abstractmethod
    def alert(self) -> int:
        """What it adds to the error byte of each status."""

    @property
    def baud(self) -> int | None:
        """The rate it listens at; None: a code without a rate."""
        return self.BAUD_CODES.get(self.get(self.BAUD))

    @property
    @abstractmethod
    def status_level(self) -> int:
        """What it answers: 0 a ping, 1 readings too, 2 everything."""

    @property
    def return_delay_ns(self) -> int:
        return self.get(self.RETURN_DELAY) * RETURN_DELAY_UNIT_NS

    @abstractmethod
    def ping_answer(self) -> bytes: ...

    @abstractmethod
    def write(self, address: int, data: bytes) -> int:
        """Error number for the log, 0 when the write was taken; nothing is taken of a refused one."""

    @abstractmethod
    def refusal(self, error: int) -> int:
        """How it tells its asker: the error byte of the status."""

    @abstractmethod
    def read(self, address: int, length: int) -> tuple[int, bytes]:
        """(error, bytes)."""

    @abstractmethod
    def show(self, raw: float, raw_velocity: float, current: float) -> None:
        """Take over where the plant says the shaft is, and show it in the registers."""

    @abstractmethod
    def overload(self) -> None:
        """It switches itself off and says so."""

    @abstractmethod
    def restart(self) -> None:
        """What only the power kept is forgotten."""

    def watchdog_due_ns(self) -> int | None:
        """When it stops by itself if nothing more is heard; None: never."""
        return None

    def trip_watchdog(self) -> None:
        """Stop where the shaft is."""
        self.stop()

    def place(self, shown: int) -> None:
        """Put the shaft where the register shows `shown`, at rest with the goal there."""
        self.show(self.raw_of(shown), 0.0, 0.0)
        self.stop()

    def stop(self) -> None:
        self.setpoint = self.present
        self.velocity = 0.0
        self.put(self.GOAL, round(self.present))

    def reboot(self, now_ns: int) -> None:
        """RAM back to its defaults, torque off, silent for a moment."""
        voltage, temperature = self.get(self.VOLTAGE), self.get(self.TEMPERATURE)
        self.restart()
        self.ignored.clear()
        self.put(self.VOLTAGE, voltage)
        self.put(self.TEMPERATURE, temperature)
        self.stop()
        self.show(self.raw, 0.0, 0.0)
        self.reboot_until_ns = now_ns + REBOOT_NS

    @property
    def plant_setpoint(self) -> float | None:
        """What the position controller is driven to, encoder counts; None without torque."""
        return self.raw_of(self.setpoint) if self.torque else None

    @property
    def profile_goal(self) -> float:
        """Where the profile goes."""
        return self.goal

    def advance_profile(self, seconds: float) -> None:
        """Move the setpoint towards the goal under profile velocity and acceleration (0: no limit)."""
        if not self.torque:
            self.setpoint, self.velocity = self.present, 0.0
            return
        goal = self.profile_goal
        error = goal - self.setpoint
        if error == 0.0 and self.velocity == 0.0:
            return
        step = self.acceleration * seconds
        # The fastest speed from which the setpoint still stops at the goal, in steps of `seconds`.
        stopping = math.inf
        if step < math.inf:
            stopping = math.sqrt(step * step / 4 + 2 * self.acceleration * abs(error)) - step / 2
        wanted = math.copysign(min(self.speed_limit, stopping, abs(error) / seconds), error)
        self.velocity += max(-step, min(step, wanted - self.velocity))
        self.setpoint += self.velocity * seconds
        if abs(goal - self.setpoint) < 0.5 and abs(self.velocity) <= max(step, 1.0):
            self.setpoint, self.velocity = float(goal), 0.0
