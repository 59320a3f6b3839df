# SPDX-License-Identifier: Apache-2.0
"""The parts of an arm's description: servos, joints, registers, settings, limits; each refuses what does not fit.

All numbers of servos are little endian, in both servo languages.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

BUSES_MAX = 2
"""SERVO_BUSES_MAX of robot/bus/servo_arm.h."""
READ_MAX = 16
"""BUS_READ_MAX of robot/bus/bus.h; one byte of it is the driver's, to tell answers apart."""
FASTEST = 8_000.0
"""Counts/s: a reading that is further from the last one than this is taken for a damaged one (`JointLimits.travel`)."""
TWOS = -1
"""Two's complement, as a register's sign."""
SIGNS = {"none": 0, "twos": TWOS, **{f"bit{bit}": bit for bit in range(1, 32)}}
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,23}")
"""Names stand in file names, options and, of 23 bytes at most (ARM_NAME_BYTES), in flight records."""


def must(fits: bool, what: str) -> None:
    """ValueError, whose text `fields.build` completes with file and place."""
    if not fits:
        raise ValueError(what)


def within(name: str, value: float, low: float, high: float) -> None:
    must(low <= value <= high, f"{name} is {value!r:.40}, must be {low:g} to {high:g}")  # nan is not


def one_of(name: str, value: str, known: Iterable[str]) -> None:
    must(value in known, f"{name} is {value!r:.60}, must be one of {', '.join(known)}")


def named(name: str, value: str) -> None:
    fits = _NAME.fullmatch(value) is not None
    must(fits, f"{name} is {value!r:.60}, must be 1 to 23 letters, digits, dots, dashes or underscores")


@dataclass(frozen=True, slots=True)
class ServoKind:
    """model: its model number. volts: of each kind of supply it is made for, lowest and highest. max_celsius: at which
    it shuts down by itself."""

    model: int
    volts: Mapping[str, tuple[float, float]]
    max_celsius: int

    def __post_init__(self) -> None:
        within("model", self.model, 0, 0xFFFF)
        within("max_celsius", self.max_celsius, 20, 150)
        must(bool(self.volts), "volts is empty; give lowest and highest of each kind of supply")
        for kind, (low, high) in self.volts.items():
            within(f"volts.{kind}[0]", low, 1, 100)
            must(low < high <= 100, f"volts.{kind} is {low!r:.20} to {high!r:.20}, must rise, to 100 at most")

    @property
    def tenths(self) -> tuple[int, int]:
        """Lowest and highest voltage of any kind, 0.1 V."""
        lowest, highest = zip(*self.volts.values())
        return round(10 * min(lowest)), round(10 * max(highest))


@dataclass(frozen=True, slots=True)
class ArmJoint:
    """One joint. A name that ends in `gripper` is one: 0 to 100 in every unit. mode: of operation. gravity: counts its
    goal may lead by at rest. full_turn: it has no ends, its range is the whole turn. bus: 1: on the second of two
    ports."""

    name: str
    id: int
    servo: str
    mode: int
    gravity: int
    full_turn: bool = False
    bus: int = 0

    def __post_init__(self) -> None:
        named("name", self.name)
        within("id", self.id, 0, 252)
        within("gravity", self.gravity, 0, 0x7FFF)
        within("bus", self.bus, 0, BUSES_MAX - 1)


@dataclass(frozen=True, slots=True)
class RegisterPlace:
    """at: first address. sign: none, twos (complement) or bitN, which says minus above the magnitude."""

    at: int
    bytes: int
    sign: str = "none"

    def __post_init__(self) -> None:
        within("at", self.at, 0, 0xFFFF)
        within("bytes", self.bytes, 1, READ_MAX - 1)
        one_of("sign", self.sign, SIGNS)
        must(SIGNS[self.sign] < 8 * self.bytes, f"sign is {self.sign}, which {self.bytes} bytes do not have")

    @property
    def numbers(self) -> range:
        """What it can hold."""
        bit = SIGNS[self.sign]
        if bit == SIGNS["none"]:
            return range(1 << 8 * self.bytes)
        if bit == SIGNS["twos"]:
            return range(-1 << 8 * self.bytes - 1, 1 << 8 * self.bytes - 1)
        return range(1 - (1 << bit), 1 << bit)


@dataclass(frozen=True, slots=True)
class Setting:
    """What a register must hold whenever there is torque: on every servo (value), or on some (of: joint → value).
    at_most: the register that bounds it."""

    register: str
    value: int | None = None
    of: Mapping[str, int] = field(default_factory=dict)
    at_most: str | None = None

    def __post_init__(self) -> None:
        must((self.value is None) == bool(self.of), f"{self.register:.40} needs either a value or `of` some joints")


@dataclass(frozen=True, slots=True)
class Watchdog:
    """value: that its register is set to. tripped: that it reads when it has stopped the servo."""

    value: int
    tripped: int

    def __post_init__(self) -> None:
        within("value", self.value, 1, 255)
        within("tripped", self.tripped, 1, 255)
        must(self.value != self.tripped, f"value and tripped are both {self.value}")


@dataclass(frozen=True, slots=True)
class MotionLimits:
    """counts/s, counts/s², counts of lead; the gripper's lead, as what it holds keeps it from closing."""

    velocity: float
    acceleration: float
    tracking: int
    gripper_tracking: int

    def __post_init__(self) -> None:
        within("velocity", self.velocity, 1, FASTEST)
        within("acceleration", self.acceleration, 1, 1e6)
        within("tracking", self.tracking, 1, 0x7FFF)
        within("gripper_tracking", self.gripper_tracking, 1, 0x7FFF)


@dataclass(frozen=True, slots=True)
class Register:
    """Where a value lives: first address, bytes, and how it says minus: not (0), two's complement (TWOS), or the bit
    above its magnitude."""

    name: str
    address: int
    size: int
    sign: int = 0

    def encode(self, value: int) -> bytes:
        if self.sign > 0:
            value = min(abs(value), (1 << self.sign) - 1) | (value < 0) << self.sign
        return (value & ((1 << 8 * self.size) - 1)).to_bytes(self.size, "little")

    def decode(self, data: bytes) -> int:
        value = int.from_bytes(data[: self.size], "little", signed=self.sign == TWOS)
        if self.sign <= 0:
            return value
        magnitude = value & ((1 << self.sign) - 1)
        return -magnitude if value >> self.sign & 1 else magnitude
