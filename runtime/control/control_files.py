# SPDX-License-Identifier: Apache-2.0
"""Inference's side of the run folder: control's status in, chunks and notices out, and when to give an inference up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_edge.bundle import Bundle
from vla_edge.contract import Chunk, ChunkKind, Frame, Observation
from vla_edge.core import load_core
from vla_edge.engines.flow_loop import FlowSignal
from vla_edge.errors import CameraError, ControlError, IdentityError
from vla_edge.runtime.control.handover import Ensemble, HandOver, HandOverOptions, Pace, Rhythm, rows_of
from vla_edge.runtime.control.planning import ControlView, SentChunks, WatchedScene, view_of
from vla_edge.runtime.control.run_folder import RunFolder
from vla_edge.runtime.inference.session import InferenceResult

SILENT_NS = 1_000_000_000
"""A control process that wrote nothing for so long is gone."""
WATCH_S = 0.1
"""Between two looks at the pictures while an inference runs: comparing two of 480×640 takes about a millisecond."""


def ring_writer(folder: RunFolder) -> Any:
    """The writing end of the ring, one at a time. ControlError: another inference process has it."""
    try:
        return load_core().RingWriter(folder.ring)
    except BlockingIOError:
        raise ControlError(
            f"another inference process writes to {folder.path}; stop it first, or give another --run-dir"
        ) from None


class ControlReader:
    """Reads control's status. Survives a control process that is not there yet or was restarted.

    IdentityError: control runs another bundle than `digest`.
    """

    def __init__(self, folder: RunFolder, digest: str) -> None:
        self._core = load_core()
        self._folder = folder
        self._digest = digest
        self._reader: Any = None

    def view(self) -> ControlView | None:
        """Control's newest status, None while it is silent for over a second."""
        if self._reader is None:
            try:
                self._reader = self._core.StateReader(self._folder.state)
            except OSError:
                return None
        status = self._reader.read()
        if status is None or time.monotonic_ns() - status["tick_ns"] > SILENT_NS:
            self._reader = None
            return None
        view = view_of(status)
        if view.bundle_digest != self._digest:
            raise IdentityError(
                f"control runs bundle {view.bundle_digest[:12]}, inference {self._digest[:12]}; start both with the "
                "same --bundle"
            )
        return view


class ChunkSender:
    """The writing end of a run's ring: chunks of one bundle to control, of `rows` actions each, and what control is
    told of the one who plans them."""

    def __init__(self, folder: RunFolder, bundle: Bundle, handover: HandOverOptions) -> None:
        policy, averaged = bundle.manifest.policy, handover.kind is HandOver.ENSEMBLE
        self._ring, self._digest = ring_writer(folder), bundle.digest
        self._ensemble = Ensemble(handover.coefficient, policy.chunk_size) if averaged else None
        self._dropped_through = 0
        self.rows = rows_of(policy, handover)
        self.sent = SentChunks()

    def send(
        self, kind: ChunkKind, observation: Observation, result: InferenceResult, view: ControlView, anew: bool
    ) -> None:
        """Write what came of `observation`. anew: forget the chunks before it, where they are averaged."""
        reading, moving = observation.joints, kind is ChunkKind.MOVING
        rows = min(len(result.actions), self.rows)
        actions = np.ascontiguousarray(result.actions[:rows], np.float32)
        if self._ensemble is not None:
            actions = self._ensemble.join(actions, reading.tick, anew, view.action_ns / view.period_ns)
        chunk = Chunk(kind, view.session, self._digest, observation.sequence, reading.tick, reading.time_ns, actions)
        self._ring.write(chunk)
        now_tick = view.tick + (time.monotonic_ns() - view.tick_ns) // view.period_ns
        self.sent.add(observation.sequence, result.latent[:rows], now_tick, reading.tick if moving else None)

    def announce(self, p99_s: float, pace: Pace | None, dropped_through: int = 0) -> None:
        """Tell control how long to wait (p99_s) and how to (pace, None: not ready yet), and that what is left of the
        chunks up to a sequence is void."""
        self._dropped_through = max(self._dropped_through, dropped_through)
        self._ring.announce(
            p99_ns=int(p99_s * 1e9),
            plan_then_move=pace is None or pace.rhythm is Rhythm.PLAN_THEN_MOVE,
            dropped_through=self._dropped_through,
            ready=pace is not None,
        )


class AbandonWatch(threading.Thread):
    """While an inference runs: gives it up when control no longer takes the chunks of its session, or when newer
    pictures show another scene than the one it was started from.

    look: the cameras' newest pictures, called on this thread; CameraError is the loop's own business.
    """

    def __init__(self, reader: ControlReader, look: Callable[[], Mapping[str, Frame]]) -> None:
        super().__init__(name="abandon-watch", daemon=True)
        self.signal = np.zeros(1, np.int32)
        self.scene_broke = False
        self._reader, self._look = reader, look
        self._session: int | None = None
        self._scene: WatchedScene | None = None
        self._looked_s = 0.0
        self._change = threading.Lock()
        self._ended = threading.Event()

    def begin(self, session: int, scene: WatchedScene | None) -> NDArray[np.int32]:
        """The signal of an inference for control session `session`; `scene` is what its pictures must stay like."""
        with self._change:
            self.signal[0] = FlowSignal.CONTINUE
            self.scene_broke = False
            self._scene, self._session, self._looked_s = scene, session, time.monotonic()
        return self.signal

    def end(self) -> None:
        with self._change:
            self._session = self._scene = None

    def give_up(self) -> None:
        """Abandon whatever runs."""
        self.signal[0] = FlowSignal.ABANDON

    def close(self) -> None:
        self._ended.set()
        self.join()

    def run(self) -> None:
        while not self._ended.wait(0.01):
            session, scene = self._session, self._scene
            if session is None:
                continue
            try:
                view = self._reader.view()
            except IdentityError:
                view = None  # the loop itself meets it too and says so
            if view is None or view.session != session or not view.takes_chunks:
                self.give_up()
            elif scene is not None and time.monotonic() - self._looked_s > WATCH_S:
                self._watch(scene)

    def _watch(self, scene: WatchedScene) -> None:
        self._looked_s = time.monotonic()
        try:
            broken = scene.broken_by(self._look())
        except CameraError:
            return
        with self._change:
            # While the pictures were compared, the inference may have ended and another one begun.
            if broken and self._scene is scene:
                self.scene_broke = True
                self.give_up()
