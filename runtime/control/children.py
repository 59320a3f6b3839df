# SPDX-License-Identifier: Apache-2.0
"""Child processes of a run: started alone in their session, watched, ended; and the guardian, forked from control."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from vla_edge.core import load_core
from vla_edge.errors import ControlError
from vla_edge.runtime.control.control_settings import LOOP_PRIORITY

END_S = 10.0
KILL_S = 5.0
PR_SET_PDEATHSIG = 1
"""Linux: <sys/prctl.h>"""
BAD_INPUT = 2
"""Exit code of a child that has told its error in a line of its own."""
SILENT = b"note: control was silent: the guardian made the arm stand still; it needs `arm`\n"
DEAD = b"note: control is dead: the guardian made the arm stand still; the servos hold it\n"


class AlreadyTold(Exception):
    """A child ended with exit code 2: the line that says why, which stands on stderr already."""


@dataclass(frozen=True, slots=True)
class Child:
    """output: its standard output, kept in an unnamed file so that a full pipe never stops it."""

    name: str
    process: subprocess.Popen[bytes]
    output: IO[bytes]

    def check(self) -> None:
        """AlreadyTold or ControlError when it has ended."""
        code = self.process.poll()
        if code == BAD_INPUT:
            raise AlreadyTold(self.answer().get("error", f"{self.name} was refused; look at its message above"))
        if code is not None:
            raise ControlError(f"{self.name} ended with exit code {code}; look at its messages above")

    def lines(self) -> list[str]:
        """What it printed so far, whole lines."""
        self.output.seek(0)
        return self.output.read().decode(errors="replace").splitlines()

    def answer(self) -> Mapping[str, Any]:
        """The JSON object of its last line, empty without one."""
        lines = self.lines()
        with contextlib.suppress(ValueError):
            reply = json.loads(lines[-1]) if lines else {}
            return reply if isinstance(reply, dict) else {}
        return {}


def start(name: str, words: Sequence[str], ends_with_us: bool = False) -> Child:
    """Run this interpreter with `words`. Signals of the terminal reach only us: we decide who stops when.

    ends_with_us: its standard input is a pipe that nobody writes to and that closes when we die, in whatever way.
    """
    output = tempfile.TemporaryFile("a+b")  # noqa: SIM115  appended to by the child wherever we have read
    source = subprocess.PIPE if ends_with_us else subprocess.DEVNULL
    words = [sys.executable, *words]
    return Child(name, subprocess.Popen(words, stdin=source, stdout=output, start_new_session=True), output)


def end_with(parent: int | None) -> None:
    """From now on SIGTERM for this process when the one that started it dies, in whatever way. None: it goes on
    alone."""
    if parent is None:
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
    if os.getppid() != parent:  # it died before we asked
        raise ControlError(f"process {parent}, which started this one, is gone; start again")


def wait_until(ready: Callable[[], bool], timeout_s: float, *needed: Child) -> None:
    """Until the last of `needed` is ready. AlreadyTold, ControlError: one of them ended, or it takes too long."""
    end_s = time.monotonic() + timeout_s
    while not ready():
        for child in needed:
            child.check()
        if time.monotonic() > end_s:
            raise ControlError(f"{needed[-1].name} was not ready within {timeout_s:.0f} s; look at its messages above")
        time.sleep(0.05)


def end(child: Child, hurried: Callable[[float], bool], patience_s: float) -> Mapping[str, Any]:
    """Ask it to end, then make it; the JSON object of its last line, empty without one.

    hurried: waits so many seconds and says whether somebody wants it over now. A process that outlives SIGKILL (the
    kernel keeps it, or gives it no core) is told of and left.
    """
    if child.process.poll() is None:
        child.process.terminate()
        ends_s = time.monotonic() + patience_s
        while child.process.poll() is None and time.monotonic() < ends_s and not hurried(0.02):
            pass
        if child.process.poll() is None:
            child.process.kill()
            try:
                child.process.wait(KILL_S)
            except subprocess.TimeoutExpired:
                print(
                    f"{child.name} (process {child.process.pid}) did not end {KILL_S:.0f} s after SIGKILL: "
                    f"{kernel_state(child.process.pid)}; look at it with `ps`",
                    file=sys.stderr,
                    flush=True,
                )
    reply = child.answer()
    child.output.close()
    return reply


def kernel_state(pid: int) -> str:
    """What the kernel says a process does, in words: "R (running)", and its scheduling class."""
    try:
        state = re.search(r"^State:\s+(.*)$", Path(f"/proc/{pid}/status").read_text(), re.M)
        realtime = os.sched_getscheduler(pid) != os.SCHED_OTHER
    except OSError:
        return "gone"
    return f"{state[1] if state else 'unknown'}{', real-time class' if realtime else ''}"


@contextlib.contextmanager
def guarded(arm: Any, period_ns: int, close: Sequence[int]) -> Iterator[Any]:
    """The arm (anything with a `port`) for the control loop, guarded until the block ends: by a child that shares its
    port and nothing else, as a program of its own could not open a port that control has locked. What it does stands in
    runtime/core/control/guardian.h; it ends when control has ended, or is dead and the arm is held.

    period_ns: from tick to tick. close: files of control that the guardian must not keep open, its locks above all.
    ControlError: none can be started.
    """
    control = os.getpid()
    try:
        guardian = load_core().Guardian(arm, period_ns)
        child = os.fork()
    except OSError as error:
        raise ControlError(
            f"no guardian can be started for servos without a watchdog: {error.strerror}; allow this user more "
            "processes (`ulimit -u`, TasksMax= of the service, pids of the container), or free memory"
        ) from None
    if child == 0:
        _watch(guardian, control, close)
    try:
        while not guardian.watched:
            if os.waitpid(child, os.WNOHANG)[0] != 0:
                raise ControlError("the guardian ended at its start; look at its messages above")
            time.sleep(0.001)
        yield guardian
    finally:
        guardian.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, 0)


def _watch(guardian: Any, control: int, close: Sequence[int]) -> None:
    """The guardian's whole life, in a session of its own: Ctrl-C and Ctrl-Z of control's terminal do not reach it."""
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        nowhere = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1):
            os.dup2(nowhere, descriptor)
        for descriptor in (nowhere, *close):
            os.close(descriptor)
        while guardian.watch(control, LOOP_PRIORITY):
            os.write(2, SILENT if os.getppid() == control else DEAD)
    finally:
        os._exit(0)
