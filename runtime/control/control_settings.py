# SPDX-License-Identifier: Apache-2.0
"""What the control core is told once, before it starts: limits, maps, times; and how its rate is chosen.

The rate of control is independent of the data's: it follows from how long the servos take to answer. The more ticks
between two actions, the smoother the line between them is followed; but a tick whose reading comes late is a tick
without one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vla_edge.bundle import UNKNOWN_RATE
from vla_edge.errors import BusError, ConfigError

LOOP_PRIORITY = 60
"""Of SCHED_FIFO: the control loop's, and its guardian's."""
RECORD_CELLS = 1 << 17


@dataclass(frozen=True, slots=True)
class JointLimits:
    """One joint's limits, in servo counts (4096 a turn), and its map to joint units.

    The guard rounds velocity, acceleration and jerk down to sixteenths of a count
    per tick, tick² and tick³; below one of them it refuses to start.
    """

    position_min: int
    position_max: int
    scale: float
    """counts = scale · joint unit + offset; its sign is the joint's direction"""
    offset: float
    velocity: float = 1_000.0
    """counts/s"""
    acceleration: float = 20_000.0
    """counts/s²"""
    jerk: float = 1_000_000.0
    """counts/s³"""
    step: int = 120
    """counts a tick"""
    tracking: int = 120
    """counts the goal may lead the present position by"""
    rest: int = 12
    """counts a joint may have moved since the observation of a rest chunk (1°)"""
    gravity: int = 120
    """counts the goal may lead by at rest, for what the joint carries: a hold leads the goal back to it, once"""
    stall: int = 0
    """counts of lead that are an obstacle while the joint does not move; 0: never"""
    travel: float = 8_000.0
    """counts/s that no joint exceeds: a reading further away is confirmed by a second before it is used; 0: any"""
    temperature: int = 0
    """°C at which the servo shuts down by itself; 0: not known"""
    voltage_min: int = 0
    voltage_max: int = 0
    """tenths of a volt; 0: not known"""
    name: str = ""
    park_turn: int = 0
    """it parks when the joints of lower turns have"""


LIMIT_ERRORS = {
    1: "its soft limits, tracking limit or map from joint units to counts are out of range",
    2: "its velocity, acceleration, jerk or step limit is below a sixteenth of a count at this rate",
    3: "its limits would need too many ticks to bring it to rest",
}
"""`guard_config_error` of runtime/core/control/guard.h, the first number of the ValueError that the core raises; the
second is the joint."""


@dataclass(frozen=True, slots=True)
class ControlSettings:
    """One run of the control core. Times in ns of CLOCK_MONOTONIC."""

    limits: tuple[JointLimits, ...]
    """in the order of the arm's description"""
    period_ns: int
    session: int
    """chunks of another session are refused; below 2**63"""
    bundle_digest: str
    blend_actions: int = 0
    """over how many actions a new chunk takes over from the one it overlaps; 0: at once (`HandOver.blend_actions`)"""
    action_ns: int = 0
    """from one action of a chunk to the next, which is the data's period; 0: one action each tick"""
    patience_min_ns: int = 2_000_000_000
    """least age limit of an observation and latch time of a hold; 3 × p99 of an inference when that is more"""
    patience_max_ns: int = 60_000_000_000
    reads_latch_ns: int = 500_000_000
    park: tuple[int, ...] | None = None
    """parking pose, counts"""
    park_speed: float = 400.0
    """counts/s"""
    stall_ns: int = 120_000_000
    """how long a joint may press against something before the arm holds"""
    arm: str = ""
    arm_digest: str = "0" * 64
    """name and digest of the description"""
    buses: int = 1
    """that its servos are on: when one is gone, the other's are braked"""


@dataclass(frozen=True, slots=True)
class LoopFiles:
    """The run folder's files the loop opens, and how it runs; see docs/design.md "Processes and their files"."""

    ring: Path
    state: Path
    record: Path
    """must not exist yet"""
    record_cells: int = RECORD_CELLS
    """256 bytes each; one a tick and 1 + n/10 a chunk of n actions"""
    socket_fd: int = -1
    """bound datagram socket for commands"""
    signal_fd: int = -1
    """non-blocking; every byte is the number of a signal: SIGTERM stops, SIGINT holds, a second one of a kind ends"""
    interrupt_ends: bool = False
    """SIGINT holds, then ends the loop: nobody is at a terminal to say more"""
    beat: Path | None = None
    """the supervisor's heartbeat (`_core.Heartbeat`): half a second without one holds; None: there is no supervisor"""
    priority: int = LOOP_PRIORITY
    """of SCHED_FIFO; 0 does not ask for it"""
    shadow: bool = False
    arm_at_start: bool = False
    stop_after_ticks: int = 0
    """ask to stop after so many; 0: never"""
    park_after_ns: int = 0
    """park when armed and without a plan for so long; 0: never"""


NS = 1_000_000_000
MIN_HZ, MAX_HZ = 6.0, 100.0
"""Below, the servos' bus watchdog of 200 ms would trip between two ticks; above, six servos take too long to ask."""
BEST_HZ = (90.0, 45.0)
"""Tried one after the other, then the data's own rate."""
HZ_OF_UNKNOWN = 30.0
"""Where a bundle does not say its data's rate: what most datasets have."""
READINGS, LATE_SHARE = 300, 0.01
ROUNDS, PAUSE_S = 5, 0.3
"""Tries of the readings, and the time between two: a busy machine delays some, a slow bus all of them."""

WRITE_S = 0.00045
"""Six goals of four bytes at 1 Mbaud."""

AnswerTime = Callable[[float], float]
"""Ticks a second → seconds that a tick gives the servos to answer."""


@dataclass(frozen=True, slots=True)
class ControlRate:
    """hz: ticks a second. fps: actions a second; None: unknown, one each tick. p50_s, p99_s: of a reading, 0 where none
    was made."""

    hz: float
    fps: float | None
    p50_s: float = 0.0
    p99_s: float = 0.0

    @property
    def period_ns(self) -> int:
        return period_ns_of(self.hz)

    @property
    def action_ns(self) -> int:
        return self.period_ns if self.fps is None else round(NS / self.fps)

    def sentence(self) -> str:
        """One line for the start-up print."""
        answers = f"the servos answer in {self.p50_s * 1e3:.1f} ms, p99 {self.p99_s * 1e3:.1f}"
        if self.fps is None:
            return f"control at {self.hz:g} Hz ({answers}); {UNKNOWN_RATE}"
        return f"control at {self.hz:g} Hz ({answers}), the policy's actions at {self.fps:g} a second"


def period_ns_of(hz: float) -> int:
    if not MIN_HZ <= hz <= MAX_HZ:
        raise ConfigError(f"--hz is {hz:g}; it must be {MIN_HZ:g} to {MAX_HZ:g}")
    return round(NS / hz)


def candidates(hz: float | None, fps: float | None) -> tuple[float, ...]:
    """Rates to try, best first: what was asked for alone."""
    if hz is not None:
        return (hz,)
    if fps is None:
        return (HZ_OF_UNKNOWN,)
    return (*BEST_HZ, min(max(fps, MIN_HZ), MAX_HZ))


def late(times_s: Sequence[float], longest_s: float) -> int:
    """Readings that took longer; one that never came took for ever."""
    return sum(time_s > longest_s for time_s in times_s)


def too_many(times_s: Sequence[float], longest_s: float) -> bool:
    """More than one in a hundred of the readings that are to be made."""
    return late(times_s, longest_s) > LATE_SHARE * READINGS


def leaves_room(usual_s: float, longest_s: float) -> bool:
    """Whether a tick has time for a second question, as the loop asks it (runtime/core/control/control.c): a reading
    may take longest_s, which is 13/16 of what a tick has for the bus."""
    return (1 + 5 / 4) * usual_s + WRITE_S <= longest_s * 16 / 13


def choose_rate(times_s: Sequence[float], hz: float | None, fps: float | None, answer_s: AnswerTime) -> ControlRate:
    """The first candidate at which no more than one reading in a hundred would be late, of those that leave time for a
    question about the servos' health where there is one. BusError: readings are late at all of them."""
    tried = candidates(hz, fps)
    p50, p99 = (float(value) for value in np.quantile(times_s, (0.5, 0.99), method="higher"))
    in_time = [rate for rate in tried if not too_many(times_s, answer_s(rate))]
    with_room = [rate for rate in in_time if leaves_room(p50, answer_s(rate))]
    if in_time:
        return ControlRate((with_room or in_time)[0], fps, p50, p99)
    slowest_s = answer_s(tried[-1])
    faster = answer_s(MIN_HZ) > slowest_s and not too_many(times_s, answer_s(MIN_HZ))
    adapter = "set the adapter's latency timer to 1 ms or use an adapter without one (docs/robot.md)"
    busy = "other programs hold these up: end them, or start them with `nice -n 19`"
    raise BusError(
        f"reading the servos takes {p50 * 1e3:.1f} ms: {late(times_s, slowest_s)} of {len(times_s)} readings took "
        f"longer than the {slowest_s * 1e3:.1f} ms that {tried[-1]:g} Hz leave; "
        + ("leave --hz out or give a smaller one, " if faster else "")
        + (busy if 2 * p50 < slowest_s else adapter)
    )


def rate_of(read_s: Callable[[], float], hz: float | None, fps: float | None, answer_s: AnswerTime) -> ControlRate:
    """The rate for a bus whose readings take read_s. BusError: it is too slow for any, or for the one asked for."""
    return choose_rate(measured(read_s, answer_s(candidates(hz, fps)[-1])), hz, fps, answer_s)


def measured(read_s: Callable[[], float], longest_s: float, sleep: Callable[[float], None] = time.sleep) -> list[float]:
    """Seconds of READINGS readings, as the loop will make them: at its priority, where that is granted.

    A round ends as soon as too many took longer than longest_s, and another one follows; the last one as it is.
    """
    times: list[float] = []
    with real_time(1):
        for number in range(ROUNDS):
            if number:
                sleep(PAUSE_S)
            times = []
            while len(times) < READINGS and not too_many(times, longest_s):
                times.append(read_s())
            if not too_many(times, longest_s):
                break
    return times


@contextmanager
def real_time(priority: int) -> Iterator[None]:
    """This thread in SCHED_FIFO, where that is allowed."""
    policy, parameter = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
    except PermissionError:
        yield
        return
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameter)
