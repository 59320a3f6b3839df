"""How long the machine kept our threads from running, so that lateness of the machine is told from lateness of our
code.

The kernel counts for every thread the time it was ready to run and waited for a core (second number of
`/proc/<pid>/schedstat`, nanoseconds; the first is the time it ran). Neither a sleep nor a computation of ours adds to
it. The time a hypervisor took away stands in `/proc/stat`. Only what a test says about time may be excused with these
numbers: it raises `TooLate`. A broken rule is a plain failed assertion and stays one.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

STALL_S = 0.05
"""One and a half ticks at 30 Hz: what the tests here give as room, or less."""
SAMPLE_S = 0.02


class TooLate(AssertionError):
    """Something did not happen in time."""


def timely(happened: bool, what: str) -> None:
    """An assertion about time, which a stall of the machine excuses."""
    if not happened:
        raise TooLate(what)


def ran_and_waited_s(thread: str = "thread-self") -> tuple[float, float]:
    """(seconds on a core, seconds ready without one) of a process's main thread, of the calling thread by default."""
    ran, waited, *_ = Path("/proc", thread, "schedstat").read_text().split()
    return int(ran) / 1e9, int(waited) / 1e9


def stolen_s() -> float:
    """Seconds that the hypervisor gave to others, a core's share."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    return int(fields[8]) / os.sysconf("SC_CLK_TCK") / (os.cpu_count() or 1)


class Witness:
    """Samples the named processes' main threads until stopped; keeps the longest stall that was the machine's.

    What our other watched processes ran meanwhile is taken off: a loop of ours that hogs a core excuses nobody.
    processes: name -> pid; asked at every sample, as a test may start another.
    """

    def __init__(self, processes: Callable[[], dict[str, int]]) -> None:
        self._processes = processes
        self._before = self._sample()
        self._stolen_s = stolen_s()
        self._stop = threading.Event()
        self.name, self.longest_s = "nobody", 0.0
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _sample(self) -> dict[tuple[str, int], tuple[float, float]]:
        found = {}
        for name, pid in self._processes().items():
            with contextlib.suppress(OSError, ValueError):  # it has ended
                found[name, pid] = ran_and_waited_s(str(pid))
        return found

    def _watch(self) -> None:
        while not self._stop.wait(SAMPLE_S):
            self._look()

    def _look(self) -> None:
        now, stolen = self._sample(), stolen_s()
        grown = {
            who: (now[who][0] - before[0], now[who][1] - before[1])
            for who, before in self._before.items()
            if who in now
        }
        for who, (ran, waited) in grown.items():
            self._keep(who[0], waited - (sum(other for other, _ in grown.values()) - ran))
        self._keep("whole machine (stolen by its host)", stolen - self._stolen_s)
        self._before, self._stolen_s = now, stolen

    def _keep(self, name: str, seconds: float) -> None:
        if seconds > self.longest_s:
            self.name, self.longest_s = name, seconds

    def stop(self) -> None:
        if self._stop.is_set():
            return
        self._stop.set()
        self._thread.join()
        self._look()


@contextlib.contextmanager
def excused_by_a_stall(processes: Callable[[], dict[str, int]]) -> Iterator[None]:
    """Within the block, what comes too late is skipped by name and number if the machine stalled one of `processes`."""
    witness = Witness(processes)
    try:
        yield
    except TooLate as error:
        witness.stop()
        if witness.longest_s < STALL_S:
            raise
        pytest.skip(
            f"the machine kept the {witness.name} from running for {witness.longest_s:.2f} s at once; cannot judge: "
            f"{error}"
        )
    finally:
        witness.stop()
