# SPDX-License-Identifier: Apache-2.0
"""What the person at a run asks for: keys of the terminal, Ctrl-C, and the signals that end a process.

Nothing here waits longer than it is told, and no signal interrupts what its caller is doing once `heeded`.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import time
import tty
from enum import Enum
from types import FrameType


class Wish(Enum):
    """HOLD: slow down and hold, which ends an episode. REDO: the same, and exports leave that episode out. ARM: let
    chunks move the arm (again). PARK: to the parking pose. END: end, holding where
    the arm is. STOP: slow down, park where a pose is stored, end. NOW: end at once."""

    HOLD = "hold"
    REDO = "redo"
    ARM = "arm"
    PARK = "park"
    END = "end"
    STOP = "stop"
    NOW = "now"


KEYS = {" ": Wish.HOLD, "a": Wish.ARM, "r": Wish.REDO, "p": Wish.PARK, "q": Wish.END}
KEYS_LINE = "space holds, a goes on, q ends"
HELP = "space holds (ends the episode), a goes on (the next one), r holds and leaves the episode out, p parks, q ends"


class Person:
    """A context: the terminal gives single keys within it, and the ending signals are ours.

    Until `heed` is called a signal raises KeyboardInterrupt, as nothing has moved yet. Afterwards it is a wish: Ctrl-C
    holds, a second one ends with the arm holding, a third one at once; without a terminal the first one holds and ends.
    SIGTERM, and SIGHUP when the terminal closes (unless `nohup` had it ignored), stop; a second one ends at once.
    """

    def __init__(self) -> None:
        self.has_terminal = sys.stdin is not None and sys.stdin.isatty() and _in_foreground(sys.stdin.fileno())
        self.signalled = False
        """a signal asked for the end"""
        self._heeded = False
        self._signals: list[int] = []
        self._interrupts = 0
        self._asked: list[Wish] = []

    def __enter__(self) -> Person:
        hang_up = [] if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else [signal.SIGHUP]
        self._reading, self._writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wakeup = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        numbers = [signal.SIGINT, signal.SIGTERM, *hang_up]
        self._before = {number: signal.signal(number, self._handle) for number in numbers}
        self._mode = termios.tcgetattr(sys.stdin.fileno()) if self.has_terminal else None
        if self._mode is not None:
            tty.setcbreak(sys.stdin.fileno(), termios.TCSANOW)
        return self

    def __exit__(self, *_: object) -> None:
        if self._mode is not None:
            termios.tcsetattr(sys.stdin.fileno(), termios.TCSANOW, self._mode)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._reading)
        os.close(self._writing)

    def heed(self) -> None:
        """From now on signals are wishes."""
        self._heeded = True

    def ask(self, wish: Wish) -> None:
        """In the place of a person who is not there."""
        self._asked.append(wish)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._heeded:
            raise KeyboardInterrupt
        self._signals.append(number)

    def wishes(self, timeout_s: float) -> list[Wish]:
        """What came since the last call, in order; waits for the first at most so long."""
        end_s = time.monotonic() + timeout_s
        found = self._take()
        while not found and (left_s := end_s - time.monotonic()) > 0:
            watched = [self._reading, *([sys.stdin.fileno()] if self.has_terminal else [])]
            select.select(watched, [], [], left_s)
            found = self._take()
        return found

    def _take(self) -> list[Wish]:
        with contextlib.suppress(BlockingIOError):
            os.read(self._reading, 64)
        signals, self._signals = self._signals, []
        found, self._asked = self._asked, []
        found += [wish for number in signals for wish in self._of_signal(number)]
        for key in self._keys():
            self._interrupts = 0 if key in KEYS else self._interrupts  # a Ctrl-C after a key is a first one again
            found += [KEYS[key]] if key in KEYS else []
        return found

    def _of_signal(self, number: int) -> list[Wish]:
        if number != signal.SIGINT:
            again, self.signalled = self.signalled, True
            return [Wish.NOW] if again else [Wish.STOP]
        self._interrupts += 1
        if self._interrupts == 1 and self.has_terminal:
            return [Wish.HOLD]
        again, self.signalled = self.signalled, True
        return [Wish.NOW] if again else [Wish.HOLD, Wish.END]

    def _keys(self) -> str:
        if not self.has_terminal or not select.select([sys.stdin.fileno()], [], [], 0)[0]:
            return ""
        try:
            data = os.read(sys.stdin.fileno(), 64)
        except OSError:
            data = b""
        self.has_terminal = bool(data)  # it was closed: SIGHUP tells what that means
        return data.decode(errors="replace")


def _in_foreground(descriptor: int) -> bool:
    """Reading the terminal from the background would stop us."""
    try:
        return os.tcgetpgrp(descriptor) == os.getpgrp()
    except OSError:
        return False
