# SPDX-License-Identifier: Apache-2.0
"""A prefix for newer pictures, made on a thread of its own while plans go on with the last one.

The thread runs `vision` and the scene graph into K/V that nobody reads; between two plans the session goes over to
them. Only one refresh is under way at a time, and only for the key (instruction, cameras) of the prefix in use, so that
masks and positions stay as they are. Which inference went over is decided by when the thread was done, and therefore
recorded (`InferenceRequest.adopt`); everything else follows from the requests.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from vla_edge.runtime.inference.cache import CacheKey, Decision, Pictures

NICE = 10
"""Added to the refreshing thread's niceness where the system knows one for threads: plans come first."""


class Refresh(Enum):
    """Where a prefix is made anew: in front of the plan that needs it, or beside the plans, which go on with the last
    one while it is young enough."""

    FRONT = "front"
    BESIDE = "beside"


@dataclass(frozen=True, slots=True)
class Adopted:
    """A refresh that an inference went over to. age_s: of its pictures at that moment; ms: what it took beside the
    plans, by stage."""

    age_s: float
    prepare_ms: float
    vision_ms: float
    prefix_ms: float


def slow_refresh(adopted: Adopted, max_age_s: float) -> str:
    """Why plans wait for refreshes such as this one, with what to type; empty where they need not. The next refresh
    begins when this one is gone over to, so pictures grow as old as two of them take."""
    took_s = (adopted.prepare_ms + adopted.vision_ms + adopted.prefix_ms) / 1e3
    if 2 * took_s <= max_age_s:
        return ""
    return (
        f"a refresh takes {took_s:.1f} s beside the plans, more than half of the {max_age_s:g} s that a prefix may be "
        f"old, so plans wait for it; calibrate with vla-calibrate gate … --max-age-s {math.ceil(3 * took_s)}, or "
        "choose --refresh front"
    )


@dataclass(frozen=True, slots=True)
class Started:
    """What a refresh is made from. pictures: by slot, copies; seen_ns: when they were taken."""

    decision: Decision
    key: CacheKey
    pictures: Pictures
    seen_ns: int


class BesideRefresh:
    """The refreshing thread. work: `vision` of the started slots and the scene graph, into the side not in use;
    returns (preparing, vision, prefix) in ms and raises what went wrong, which `take` raises again."""

    def __init__(self, work: Callable[[Started], tuple[float, float, float]]) -> None:
        self._work = work
        self.started: Started | None = None
        self._took = (0.0, 0.0, 0.0)
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None

    @property
    def done(self) -> bool:
        """A refresh was started, has ended, and was not taken."""
        return self.started is not None and self._thread is not None and not self._thread.is_alive()

    def start(self, started: Started) -> None:
        """Begin a refresh; none may be under way."""
        assert self.started is None
        self.started = started
        # Not a daemon: a process that ends waits for it, so that none is cut off inside a graph.
        self._thread = threading.Thread(target=self._run, name="refresh")
        self._thread.start()

    def wait(self) -> None:
        """Until none is under way."""
        if self._thread is not None:
            self._thread.join()

    def take(self) -> tuple[Started, tuple[float, float, float]]:
        """Wait for the refresh that is under way: what it was made from and what it took."""
        assert self.started is not None
        self.wait()
        started, self.started = self.started, None
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return started, self._took

    def discard(self) -> None:
        """Wait for one that is under way, and forget it."""
        self.wait()
        self.started = self._error = None

    def _run(self) -> None:
        assert self.started is not None
        try:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), min(19, os.nice(0) + NICE))
            self._took = self._work(self.started)
        except Exception as error:  # noqa: BLE001 -- raised again on the session's thread
            self._error = error
