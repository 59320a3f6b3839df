# SPDX-License-Identifier: Apache-2.0
"""Policy sessions for clients: one each, with its own cache and noise, at most so many; one worker runs them in
turn."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from vla_edge.contract import Frame, JointReading, Observation
from vla_edge.errors import ObservationError
from vla_edge.runtime.control.inference_log import InferenceLog, entry_of
from vla_edge.runtime.inference.infer import ObservationFile
from vla_edge.runtime.inference.session import InferenceRequest, InferenceResult, PolicySession

IDLE_S = 60.0
"""A KServe sequence that is not heard of for so long loses its session."""
WAITING = 8
"""Inferences that may wait for the worker."""


class Busy(ObservationError):
    """Every session is taken, or too many inferences wait: try again later."""


@dataclass(slots=True)
class Client:
    """A session and whom it is lent to."""

    session: PolicySession
    number: int
    used_ns: int = 0
    running: bool = False


@dataclass(slots=True)
class ServedCounts:
    """What the service did so far. last: record of the newest inference."""

    inferences: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    hits: int = 0
    total_s: float = 0.0
    last: dict[str, Any] = field(default_factory=dict)


class SessionPool:
    """All methods but `warm_up` and `infer` are for the event loop's thread and do not block.

    make: builds a session (loads every graph), called on the worker thread. limit: sessions at a time; each holds its
    own buffers. check: refuses an observation before it is run. log: takes every inference.
    """

    def __init__(
        self, make: Callable[[int], PolicySession], limit: int, check: Callable[[Observation], None], log: InferenceLog
    ) -> None:
        self._make, self._limit, self._check, self.log = make, limit, check, log
        self._worker = ThreadPoolExecutor(1, "inference")
        self._free: list[Client] = []
        self._made = 0
        self._sequences: dict[int, Client] = {}
        self._pending = 0
        self.counts = ServedCounts()
        self.cold_start_s: float | None = None

    async def warm_up(self, started_ns: int) -> None:
        """Build the first session and run it until it is warm; `cold_start_s` counts from `started_ns`."""
        client = await self.acquire()
        await self._run(partial(_warm, client.session))
        self.release(client)
        self.cold_start_s = (time.monotonic_ns() - started_ns) / 1e9

    @property
    def ready(self) -> bool:
        return self.cold_start_s is not None

    @property
    def lent(self) -> int:
        return self._made - len(self._free)

    async def acquire(self) -> Client:
        """A fresh session for one client. Busy when all are lent."""
        self._drop_idle_sequences(time.monotonic_ns())
        if self._free:
            return self._free.pop()
        if self._made >= self._limit:
            raise Busy(
                f"all {self._limit} sessions are taken; try again later, or start the service with more --sessions"
            )
        self._made += 1
        number = self._made
        made: PolicySession | None = None
        try:
            made = await self._run(partial(self._make, number))
        finally:
            self._made -= made is None
        assert made is not None
        return Client(made, number)

    def release(self, client: Client) -> None:
        """Take it back; the next client finds no history in it."""
        self._worker.submit(client.session.reset)  # behind an inference that may still run
        self._free.append(client)

    async def sequence(self, number: int, start: bool) -> Client:
        """The session of a KServe sequence; `start` forgets what it saw. Busy when all are lent."""
        client = self._sequences.get(number)
        if client is None:
            made = await self.acquire()
            client = self._sequences.setdefault(number, made)
            if client is not made:  # another request of the sequence came first
                self.release(made)
        elif start:
            self._worker.submit(client.session.reset)
        client.used_ns = time.monotonic_ns()
        return client

    def end_sequence(self, number: int) -> None:
        client = self._sequences.pop(number, None)
        if client is not None:
            self.release(client)

    async def infer(self, client: Client, given: ObservationFile) -> InferenceResult:
        """One inference on the worker. ObservationError for an observation the policy does not take; Busy."""
        if self._pending >= WAITING or client.running:
            raise Busy(f"{self._pending} inferences wait already; send the next when the last was answered")
        self._check(given.observation)
        now_ns = time.monotonic_ns()
        request = InferenceRequest(_now(given.observation, now_ns), now_ns, given.steps, given.noise)
        self._pending += 1
        client.running = True
        work = asyncio.get_running_loop().run_in_executor(self._worker, client.session.infer, request)
        work.add_done_callback(partial(self._done, client))
        result = await asyncio.shield(work)  # a client that goes away does not free its place before the work is done
        assert result is not None
        self._count(client, result)
        if not np.isfinite(result.actions).all():
            raise ObservationError("the actions are not finite; check noise and state, or export the bundle again")
        return result

    def close(self) -> None:
        """Wait for the running inference."""
        self._worker.shutdown(cancel_futures=True)

    def _done(self, client: Client, work: asyncio.Future[Any]) -> None:
        self._pending -= 1
        client.running = False
        client.used_ns = time.monotonic_ns()

    def _count(self, client: Client, result: InferenceResult) -> None:
        counts = self.counts
        counts.inferences += 1
        counts.hits += result.decision.hit
        counts.reasons[result.decision.reason.value] += 1
        counts.total_s += result.timings.total / 1e3
        counts.last = entry_of(result)
        self.log.inference(result, {"session": client.number, "time_ns": time.monotonic_ns()})

    def _drop_idle_sequences(self, now_ns: int) -> None:
        for number, client in list(self._sequences.items()):
            if not client.running and now_ns - client.used_ns > IDLE_S * 1e9:
                self.end_sequence(number)

    async def _run(self, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._worker, work)


def _now(observation: Observation, now_ns: int) -> Observation:
    """A client's observation is dated by its arrival."""
    frames = {name: Frame(name, frame.image, now_ns, 0) for name, frame in observation.frames.items()}
    return Observation(0, frames, JointReading(0, now_ns, observation.joints.positions), observation.task)


def _warm(session: PolicySession) -> None:
    """Two inferences on grey pictures: the first one allocates."""
    policy = session.policy
    frames = {
        camera.name: Frame(camera.name, np.full((camera.height, camera.width, 3), 128, np.uint8), 0, 0)
        for camera in session.bundle.manifest.cameras
    }
    observation = Observation(0, frames, JointReading(0, 0, np.zeros(policy.state_dim, np.float32)), "warm up")
    noise = np.zeros((policy.chunk_size, policy.max_action_dim), np.float32)
    for _ in range(2):
        session.recompute(InferenceRequest(observation, 0, None, noise))
    session.reset()
