"""Child processes of a run: started alone in their session, watched, ended."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

from vla_edge.errors import ControlError

END_S = 10.0
PR_SET_PDEATHSIG = 1
"""Linux: <sys/prctl.h>"""
BAD_INPUT = 2
"""Exit code of a child that has told its error in a line of its own."""


class AlreadyTold(Exception):
    """A child ended with exit code 2: the line that says why stands on stderr already."""


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
            raise AlreadyTold(self.name)
        if code is not None:
            raise ControlError(f"{self.name} ended with exit code {code}; look at its messages above")

    def lines(self) -> list[str]:
        """What it printed so far, whole lines."""
        self.output.seek(0)
        return self.output.read().decode(errors="replace").splitlines()


def start(name: str, words: Sequence[str]) -> Child:
    """Run this interpreter with `words`. Signals of the terminal reach only us: we decide who stops when."""
    output = tempfile.TemporaryFile("a+b")  # noqa: SIM115  appended to by the child wherever we have read
    return Child(name, subprocess.Popen([sys.executable, *words], stdout=output, start_new_session=True), output)


def end_with(parent: int | None) -> None:
    """From now on SIGTERM for this process when the one that started it dies, in whatever way. None: it goes on
    alone."""
    if parent is None:
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
    if os.getppid() != parent:  # it died before we asked
        raise ControlError(f"process {parent}, which started this one, is gone; start again")


def wait_for_line(child: Child, timeout_s: float) -> str:
    """Its first line. AlreadyTold, ControlError: it ended or said nothing."""
    end_s = time.monotonic() + timeout_s
    while time.monotonic() < end_s:
        lines = child.lines()
        if lines:
            return lines[0]
        child.check()
        time.sleep(0.05)
    raise ControlError(f"{child.name} was not ready within {timeout_s:.0f} s; look at its messages above")


def end(child: Child, patience_s: float = END_S) -> Mapping[str, Any]:
    """Ask it to end, then make it; the JSON object of its last line, empty without one."""
    if child.process.poll() is None:
        child.process.terminate()
        try:
            child.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            child.process.kill()
            child.process.wait()
    lines = child.lines()
    child.output.close()
    with contextlib.suppress(ValueError):
        told = json.loads(lines[-1]) if lines else {}
        return told if isinstance(told, dict) else {}
    return {}
