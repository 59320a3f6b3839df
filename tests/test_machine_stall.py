"""The witness that excuses lateness: it sees a starved process, and neither a sleeping nor a busy one."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from tests.machine_stall import STALL_S, TooLate, Witness, excused_by_a_stall, ran_and_waited_s, timely

SPIN = "while True: pass"


def on_core(core: set[int], *words: str) -> subprocess.Popen[bytes]:
    """A process on one core. Set from outside: code between fork and exec can meet a lock that a thread of ours
    held."""
    process = subprocess.Popen([*words, sys.executable, "-c", SPIN])
    os.sched_setaffinity(process.pid, core)
    return process


def test_lateness_of_our_own_is_not_excused() -> None:
    with pytest.raises(TooLate, match="the arm"):
        with excused_by_a_stall(dict):
            timely(False, "the arm did not move")


def test_sleep_is_no_stall_and_a_starved_process_is_one() -> None:
    """Two loops on one core, the watched one at the lowest priority: it waits for most of the time."""
    core = {min(os.sched_getaffinity(0))}
    idle = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    starved = on_core(core, "nice", "-n", "19")
    hogs = [on_core(core) for _ in range(2)]
    try:
        before = ran_and_waited_s(str(idle.pid))
        witness = Witness(lambda: {"starved": starved.pid})
        end_s = time.monotonic() + 20
        while witness.longest_s < STALL_S and time.monotonic() < end_s:
            time.sleep(0.05)
        witness.stop()
        slept = ran_and_waited_s(str(idle.pid))
        assert witness.longest_s >= STALL_S and slept[0] - before[0] < 1.0
    finally:
        for process in (idle, starved, *hogs):
            process.kill()
            process.wait()


def test_a_loop_of_our_own_that_hogs_the_core_excuses_nobody() -> None:
    core = {min(os.sched_getaffinity(0))}
    processes = [on_core(core) for _ in range(2)]
    try:
        time.sleep(0.3)
        witness = Witness(lambda: {"first": processes[0].pid, "second": processes[1].pid})
        time.sleep(1.0)
        witness.stop()
        waited = ran_and_waited_s(str(processes[0].pid))[1]
        # What anyone else ran on that core is rightly the machine's; what the other loop ran is not.
        assert waited > 0.2 and witness.longest_s < waited / 2
    finally:
        for process in processes:
            process.kill()
            process.wait()
