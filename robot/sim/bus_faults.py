# SPDX-License-Identifier: Apache-2.0
"""Injected faults of the emulated bus: what happens to a status on its way."""

from __future__ import annotations

import random

from vla_edge.errors import ConfigError
from vla_edge.robot.sim.framing import Language

FAULT_NAMES = ("drop", "corrupt", "bit_flip", "truncate", "wrong_id", "junk", "late", "twice", "deaf", "stall")
"""drop: the status never arrives. corrupt: one byte replaced. bit_flip: one bit. truncate: cut anywhere. wrong_id: a
valid packet of another id. junk: random bytes before it. late: arrives `late_ms` later. twice: arrives two times. deaf:
the servos do not hear the request. stall: the whole answer, all its statuses, arrives `late_ms` later in one piece, as
from an adapter that was kept busy: the fault that makes an old answer look like the next one."""


class Faults:
    """Seeded faults: the same seed and the same packets give the same faults.

    rates: probability of each, 0 to 1, per status packet; of `deaf` and `stall` per request.
    """

    def __init__(self, seed: int, late_ms: tuple[float, float] = (5.0, 120.0)) -> None:
        self.rates = dict.fromkeys(FAULT_NAMES, 0.0)
        self.late_ms = late_ms
        self.counts = dict.fromkeys(FAULT_NAMES, 0)
        self._random = random.Random(seed)

    def set_rate(self, name: str, probability: float) -> None:
        if name not in FAULT_NAMES:
            raise ConfigError(f"fault {name!r} is unknown; choose one of {', '.join(FAULT_NAMES)}")
        if not 0.0 <= probability <= 1.0:
            raise ConfigError(f"the rate of fault {name} is {probability}; it must be within 0..1")
        self.rates[name] = probability

    def _happens(self, name: str) -> bool:
        if self.rates[name] <= 0.0 or self._random.random() >= self.rates[name]:
            return False
        self.counts[name] += 1
        return True

    def request_is_heard(self) -> bool:
        return not self._happens("deaf")

    def stall_ns(self) -> int:
        """How much later the whole answer to one request arrives."""
        return self._late_ns() if self._happens("stall") else 0

    def _late_ns(self) -> int:
        return int(self._random.uniform(*self.late_ms) * 1e6)

    def deliver(self, language: Language, servo_id: int, error: int, parameters: bytes) -> list[tuple[int, bytes]]:
        """What arrives of one status: (delay in ns, bytes) pairs, possibly none."""
        packet = language.encode_status(servo_id, error, parameters)
        if self._happens("wrong_id"):
            packet = language.encode_status((servo_id + self._random.randint(1, 5)) % 253, error, parameters)
        if self._happens("drop"):
            return []
        if self._happens("corrupt"):
            at = self._random.randrange(len(packet))
            packet = packet[:at] + bytes([self._random.randrange(256)]) + packet[at + 1 :]
        elif self._happens("bit_flip"):  # one damage a packet: two could cancel out in a checksum of one byte
            at = self._random.randrange(len(packet))
            packet = packet[:at] + bytes([packet[at] ^ (1 << self._random.randrange(8))]) + packet[at + 1 :]
        if self._happens("truncate"):
            packet = packet[: self._random.randrange(len(packet))]
        if self._happens("junk"):
            packet = self._random.randbytes(self._random.randint(1, 40)) + packet
        arrivals = [(0, packet)]
        if self._happens("late"):
            arrivals = [(self._late_ns(), packet)]
        if self._happens("twice"):
            arrivals.append(arrivals[0])
        return arrivals
