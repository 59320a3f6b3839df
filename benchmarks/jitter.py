# SPDX-License-Identifier: Apache-2.0
"""How late a control tick starts: this loop, a Python loop with absolute deadlines, a Python loop that sleeps the rest.

    python -m vla_edge.benchmarks.jitter --seconds 60 --out benchmarks/results

The ceiling is the machine's timer: a tick cannot start before it is due, and the kernel wakes a sleeping thread some
tens of microseconds late. All loops run at the same time as a matrix product on `--load` threads; their order is drawn
anew in every round, so that a busy neighbour hits all alike. Steal time is what the hypervisor took from this machine
meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_edge.benchmarks.bench_report import write_result
from vla_edge.command_line import count, folder_to_write, positive, run_command, whole
from vla_edge.command_parser import CommandParser
from vla_edge.core import load_core
from vla_edge.errors import ConfigError
from vla_edge.robot.sim.still_arm import StillArm
from vla_edge.runtime.control.control_settings import ControlSettings, JointLimits, LoopFiles
from vla_edge.runtime.control.run_folder import default_run_folder
from vla_edge.runtime.records.report import open_record, ticks_of

NS = 1_000_000_000
WORK_S = 0.002
"""What a Python loop does in its tick: about the bus time of reading six servos and writing six goals."""

Lateness = NDArray[np.int64]
"""ns by which each tick started after its time t0 + k·T; a tick that never ran is the period."""


def core_loop(hz: float, seconds: float, priority: int) -> tuple[Lateness, int]:
    """The C loop with an arm that has no bus, in this process; lateness and missed ticks."""
    core = load_core()
    period_ns = round(NS / hz)
    limits = tuple(JointLimits(1000, 3000, 10.0, 2000.0) for _ in range(6))
    settings = ControlSettings(limits=limits, period_ns=period_ns, session=1, bundle_digest="0" * 64)
    base = default_run_folder().parent
    with tempfile.TemporaryDirectory(prefix="vla-jitter-", dir=base if base.is_dir() else None) as folder:
        path = Path(folder)
        files = LoopFiles(
            path / "ring", path / "state", path / "record", priority=priority, arm_at_start=True,
            stop_after_ticks=round(hz * seconds),
        )  # fmt: skip
        core.control_run(StillArm([2000] * 6), settings, files)
        late = np.array([tick["late_ns"] for tick in ticks_of(open_record(path / "record"))], np.int64)
        missed = core.StateReader(path / "state").read()["missed"]
    return late, int(missed)


def _work() -> None:
    """Busy for WORK_S of CPU time, as a Python loop that packs and parses is."""
    end = time.thread_time() + WORK_S
    while time.thread_time() < end:
        pass


def deadline_loop(hz: float, seconds: float, priority: int) -> tuple[Lateness, int]:
    """Python, absolute deadlines: tick k is due at t0 + k·T, missed ticks are skipped."""
    _ask(priority)
    period = 1 / hz
    start = time.monotonic() + period
    late: list[int] = []
    tick = missed = 0
    while tick < hz * seconds:
        time.sleep(max(0.0, start + tick * period - time.monotonic()))
        now = time.monotonic()
        late.append(int((now - start - tick * period) * NS))
        _work()
        following = max(tick + 1, int((time.monotonic() - start) / period))
        missed += following - tick - 1
        tick = following
    return np.array(late), missed


def sleep_loop(hz: float, seconds: float, priority: int) -> tuple[Lateness, int]:
    """Python, `sleep(period - work)`: every lateness is kept and adds up to drift."""
    _ask(priority)
    period = 1 / hz
    start = time.monotonic()
    late: list[int] = []
    tick = 0
    while (began := time.monotonic()) - start < seconds:
        late.append(int((began - start - tick * period) * NS))
        _work()
        tick += 1
        time.sleep(max(0.0, period - (time.monotonic() - began)))
    return np.array(late), int(hz * seconds) - tick


def _ask(priority: int) -> None:
    if priority:
        with contextlib.suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))


Loop = Callable[[float, float, int], tuple[Lateness, int]]
LOOPS: dict[str, tuple[Loop, int]] = {
    "C loop, SCHED_FIFO": (core_loop, 60),
    "C loop, normal priority": (core_loop, 0),
    "Python deadlines, SCHED_FIFO": (deadline_loop, 60),
    "Python deadlines": (deadline_loop, 0),
    "Python sleep(period - work)": (sleep_loop, 0),
}


def _child(loop: Loop, hz: float, seconds: float, priority: int, pipe: Any) -> None:
    pipe.send(loop(hz, seconds, priority))


def in_own_process(loop: Loop, hz: float, seconds: float, priority: int) -> tuple[Lateness, int]:
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_child, args=(loop, hz, seconds, priority, theirs))
    process.start()
    late, missed = ours.recv()
    process.join()
    return late, missed


@contextlib.contextmanager
def load(threads: int) -> Iterator[None]:
    """A matrix product at normal priority."""
    code = "import numpy as np\na = np.random.rand(800, 800)\nwhile True: a @ a"
    words = [sys.executable, "-c", code]
    if threads == 0:
        yield
        return
    limit = {name: str(threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    with subprocess.Popen(["env", *(f"{name}={value}" for name, value in limit.items()), *words]) as process:
        time.sleep(1.0)
        try:
            yield
        finally:
            process.kill()


def steal_share(before: Sequence[int], after: Sequence[int]) -> float:
    """Share of all CPU time that the hypervisor gave to others."""
    spent = [b - a for a, b in zip(before, after)]
    return spent[7] / max(1, sum(spent[:8]))


def cpu_times() -> list[int]:
    """The first line of /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal."""
    return [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]


def summary(late: Lateness, missed: int) -> dict[str, float]:
    values = np.percentile(late / 1e3, [50, 99, 99.9, 100])
    named = dict(zip(("p50_us", "p99_us", "p99.9_us", "max_us"), map(float, values)))
    return {**named, "missed": missed, "ticks": len(late)}


def measure(hz: float, seconds: float, rounds: int, threads: int) -> tuple[dict[str, Lateness], dict[str, int], float]:
    """Lateness and misses of each loop, and the steal share of the whole time."""
    times: dict[str, list[Lateness]] = {name: [] for name in LOOPS}
    missed = dict.fromkeys(LOOPS, 0)
    before = cpu_times()
    with load(threads):
        for number in range(rounds):
            names = list(LOOPS)
            random.Random(number).shuffle(names)
            for name in names:
                loop, priority = LOOPS[name]
                late, skipped = in_own_process(loop, hz, seconds / rounds, priority)
                times[name].append(late)
                missed[name] += skipped
    return {name: np.concatenate(lists) for name, lists in times.items()}, missed, steal_share(before, cpu_times())


def main(argv: Sequence[str]) -> int:
    parser = CommandParser(prog="python -m vla_edge.benchmarks.jitter", description="lateness of control ticks")
    parser.add_argument("--hz", type=positive, default=30.0)
    parser.add_argument("--seconds", type=positive, default=60.0, help="of each loop")
    parser.add_argument("--rounds", type=count, default=3)
    parser.add_argument("--load", type=whole, default=2, help="threads of the matrix product beside it; 0: none")
    parser.add_argument("--out", type=folder_to_write, required=True, help="folder of the result")
    options = parser.parse_args(argv)
    if options.seconds < options.rounds or options.rounds < 1:
        raise ConfigError(f"--seconds {options.seconds:g} in {options.rounds} rounds is under a second each; give more")
    print("ceiling: a timer wakes a thread tens of microseconds late; nothing starts before its time")
    times, missed, steal = measure(options.hz, options.seconds, options.rounds, options.load)
    host = f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}"
    per_loop = {name: summary(late, missed[name]) for name, late in times.items()}
    for name, row in per_loop.items():
        print(
            f"{name:<30} p50 {row['p50_us']:9.0f}  p99 {row['p99_us']:9.0f}  p99.9 {row['p99.9_us']:9.0f}  max "
            f"{row['max_us']:9.0f} µs  missed {row['missed']} of {row['ticks'] + row['missed']}"
        )
    line = {"hz": options.hz, "seconds": options.seconds, "load_threads": options.load, "steal_share": steal}
    line |= {"host": host, "loops": per_loop}
    write_result(options.out, "jitter", line)
    print(json.dumps(line))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
