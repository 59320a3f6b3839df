# SPDX-License-Identifier: Apache-2.0
"""A register of a servo: where a number lies, and how it says minus. Little endian in both servo languages.

Which registers an arm's servos have stands in its description (robot/arms/).
"""

from __future__ import annotations

from dataclasses import dataclass

TWOS = -1
"""Two's complement, as a register's sign."""


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
