"""Control rate: ticks a second, chosen from how long the servos take to answer, independent of the data's rate.

The more ticks between two actions, the smoother the line between them is followed; but a tick whose reading comes late
is a tick without one. Pure, but for `measured`, which asks the servos.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from vla_edge.bundle import UNKNOWN_RATE
from vla_edge.errors import BusError, ConfigError

NS = 1_000_000_000
MIN_HZ, MAX_HZ = 6.0, 100.0
"""Below, the servos' bus watchdog of 200 ms would trip between two ticks; above, six servos take too long to ask."""
BEST_HZ = (90.0, 45.0)
"""Tried one after the other, then the data's own rate."""
HZ_OF_UNKNOWN = 30.0
"""Where a bundle does not say its data's rate: what most datasets have."""
READINGS, LATE_SHARE = 300, 0.01
ROUNDS = 5
"""Tries of the readings: a busy machine delays some, a slow bus all of them."""

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


def choose_rate(times_s: Sequence[float], hz: float | None, fps: float | None, answer_s: AnswerTime) -> ControlRate:
    """The first candidate at which no more than one reading in a hundred would be late. BusError: at none of them."""
    tried = candidates(hz, fps)
    p50, p99 = (float(value) for value in np.quantile(times_s, (0.5, 0.99), method="higher"))
    for rate in tried:
        if not too_many(times_s, answer_s(rate)):
            return ControlRate(rate, fps, p50, p99)
    slowest_s = answer_s(tried[-1])
    faster = answer_s(MIN_HZ) > slowest_s and not too_many(times_s, answer_s(MIN_HZ))
    raise BusError(
        f"reading the six servos takes {p50 * 1e3:.1f} ms: {late(times_s, slowest_s)} of {len(times_s)} readings took "
        f"longer than the {slowest_s * 1e3:.1f} ms that {tried[-1]:g} Hz leave; "
        + ("leave --hz out or give a smaller one, " if faster else "")
        + "set the adapter's latency timer to 1 ms or use an adapter without one (docs/robot.md)"
    )


def measured(read_s: Callable[[], float], longest_s: float) -> list[float]:
    """Seconds of READINGS readings, as the loop will make them: at its priority, where that is granted.

    A round ends as soon as too many took longer than longest_s, and another one follows; the last one as it is.
    """
    times: list[float] = []
    with _loop_priority():
        for _ in range(ROUNDS):
            times = []
            while len(times) < READINGS and not too_many(times, longest_s):
                times.append(read_s())
            if not too_many(times, longest_s):
                break
    return times


@contextmanager
def _loop_priority() -> Iterator[None]:
    policy, parameter = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except PermissionError:
        yield
        return
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameter)
