# SPDX-License-Identifier: Apache-2.0
"""The loop of the inference process: what is planned when, sent, measured, audited and written down."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vla_edge.contract import ChunkKind, Frame, JointReading, Observation
from vla_edge.errors import CameraError
from vla_edge.robot.cameras import Camera, FreshnessWatch
from vla_edge.runtime.control.control_files import AbandonWatch, ChunkSender, ControlReader
from vla_edge.runtime.control.handover import HandOver, HandOverOptions, HostDelays, Pace, inpaint_into, pace_of
from vla_edge.runtime.control.identity import check_start_pose
from vla_edge.runtime.control.inference_log import InferenceLog
from vla_edge.runtime.control.planning import (
    STILL_MEAN,
    STILL_WORST,
    ControlView,
    PlanRules,
    SceneStill,
    WatchedScene,
    frames_are_of_rest,
    next_kind,
    still,
)
from vla_edge.runtime.control.run_folder import RunFolder
from vla_edge.runtime.inference.cache import CacheCounts, CacheMode
from vla_edge.runtime.inference.refresh import Adopted, Refresh, slow_refresh
from vla_edge.runtime.inference.session import InferenceRequest, InferenceResult, PolicySession, worth_correcting
from vla_edge.runtime.inference.shadow_audit import ShadowAudit

Say = Callable[[str], None]

MEASURED = 8
"""Inferences at start-up that tell the host's rhythm; the first, cold one is left out."""
MEASURE_S = 15.0
"""A slow host measures fewer of them."""
SETTLE_S = 0.3
"""The goal must have been constant for so long before a rest observation."""
POLL_S = 0.004
LOOK_S = 0.1
"""Longest time without a look at the cameras, but for an inference in between."""
TELL_S = 0.25
"""Least time between two summaries: one takes as long as the tenth part of a quick plan."""
REPACE_EVERY = 50
"""Inferences between two looks at the rhythm."""


@dataclass(frozen=True, slots=True)
class LoopOptions:
    """steps, least_steps: Euler steps, and the fewest when a chunk would come late. replan_s: least time between two
    observations while moving. audit: share of hits."""

    task: str
    handover: HandOverOptions
    steps: int
    least_steps: int
    replan_s: float = 0.25
    audit: float = 0.02


class InferenceLoop:
    """One run of the inference process over its session, cameras and run folder."""

    def __init__(
        self,
        session: PolicySession,
        cameras: Mapping[str, Camera],
        watches: Mapping[str, FreshnessWatch],
        folder: RunFolder,
        options: LoopOptions,
    ) -> None:
        self._session, self._cameras, self._watches, self._options = session, cameras, watches, options
        digest = session.bundle.digest
        self._control = ControlReader(folder, digest)
        self._abandon = AbandonWatch(ControlReader(folder, digest), self._newest)
        self._log = InferenceLog(folder.path)
        audited = session.cache.mode is not CacheMode.OFF and options.audit > 0
        self._audit = ShadowAudit(session, options.audit, session.options.seed) if audited else None
        self._delays = HostDelays(session.options.refresh is Refresh.BESIDE)
        self._sender = ChunkSender(folder, session.bundle, options.handover)
        self._anew = True
        self._still = SceneStill()
        self.pace: Pace | None = None
        self._control_session: int | None = None
        self._observed_tick: int | None = None
        # Above every number an earlier inference process of this boot can have used: it counted slower than a
        # microsecond.
        self._sequence = time.monotonic_ns() // 1000
        self._since_repaced = 0
        self._trusted = False
        self._looked_s = self._told_s = 0.0
        self._untold = False
        self._fault = ""
        self._stopping = False

    def stop(self) -> None:
        """End the loop; safe from a signal handler."""
        self._stopping = True
        self._abandon.give_up()

    def run(self, seconds: float, say: Say) -> dict[str, Any]:
        """Measure, then plan until stopped (or for `seconds`); the summary."""
        self._say = say
        end = time.monotonic() + seconds if seconds else math.inf
        self._abandon.start()
        self._log.line({"start": self._facts(), "time_ns": time.monotonic_ns()})
        try:
            view = self._wait_for_control(end)
            if view is not None:
                self._measure(view)
            while not self._stopping and time.monotonic() < end:
                try:
                    ran = self._turn()
                except CameraError as error:
                    ran = False
                    self._camera_fault(str(error))
                if not ran:
                    time.sleep(POLL_S)
        finally:
            self._abandon.close()
            summary = self._summary("stopped")
            self._log.close()
        return summary

    def _wait_for_control(self, end: float) -> ControlView | None:
        said = False
        while not self._stopping and time.monotonic() < end:
            view = self._control.view()
            if view is not None and view.reading_tick >= 0:
                if view.state == "disarmed":
                    check_start_pose(self._session.bundle, self._session.preparer.tables, view.positions)
                return view
            if not said:
                self._say("inference: waiting for the control process")
                said = True
            time.sleep(0.05)
        return None

    def _measure(self, view: ControlView) -> None:
        """Fresh inferences whose chunks are not sent: the host's delay, before anything depends on it."""
        self._log.summary("measuring", None, self._session.cache.counts, {})
        self._announce()
        start = time.monotonic()
        for index in range(MEASURED + 1):
            if self._stopping or (index > 1 and time.monotonic() - start > MEASURE_S):
                break
            begin = time.monotonic()
            observation = self._observation(self._pictures(), self._control.view() or view)
            result = self._session.recompute(
                InferenceRequest(observation, time.monotonic_ns(), self._options.steps, signal=self._abandon.signal)
            )
            if index and result is not None:
                self._took(ChunkKind.REST, time.monotonic() - begin, result)
        if self._delays.all.count == 0:
            return  # stopped meanwhile
        self._session.reset()
        self._session.cache.counts = CacheCounts()
        self._repace(view)

    def _took(self, kind: ChunkKind, delay_s: float, result: InferenceResult) -> None:
        """One inference more, from reading the observation to the chunk in the ring."""
        timings = result.timings
        prefix_ms = timings.total - timings.state - timings.flow if kind is ChunkKind.REST else 0.0
        self._delays.add(delay_s, timings.step, result.decision.prefix, prefix_ms / 1e3)

    def _repace(self, view: ControlView) -> None:
        moving = self._delays.moving
        pace = pace_of(moving.p50_s, moving.p99_s, self._sender.rows, view.action_ns / 1e9)
        if self.pace is None or pace.rhythm is not self.pace.rhythm:
            self._say(f"inference: {pace.sentence()}")
        self.pace = pace
        self._since_repaced = 0
        self._announce()
        self._summary("ready")

    def _announce(self, dropped_through: int = 0) -> None:
        """Tell control how long to wait, and the supervisor whether inference is ready. Before the first chunk an armed
        control has waited for the measuring too, so it is told a slow host's delay: the true one would make it latch
        at once."""
        waited = self.pace is None or not self._sender.sent.any
        p99_s = max(self._delays.all.p99_s, self._delays.fresh.p99_s, MEASURE_S if waited else 0.0)
        self._sender.announce(p99_s, self.pace, dropped_through)

    def _turn(self) -> bool:
        """Look whether a chunk is to be planned, and plan it; whether an inference ran. CameraError: one is frozen."""
        assert self.pace is not None
        if self._untold and time.monotonic() - self._told_s > TELL_S:
            self._summary("ready")
        view = self._control.view()
        if view is None:
            return False
        if time.monotonic() - self._looked_s > LOOK_S:
            self._pictures()  # a camera that freezes while nothing is planned is a fault as well
        if view.session != self._control_session:
            self._new_control(view)
        replan_s = min(self._options.replan_s, self.pace.latest_s)
        rules = PlanRules(self._ticks(SETTLE_S, view), self._ticks(replan_s, view))
        kind = next_kind(view, self.pace.rhythm, rules, self._observed_tick)
        if kind is None or (kind is ChunkKind.REST and self._sender.sent.awaited(view)):
            return False
        start = time.monotonic()
        frames = self._pictures()
        now = self._control.view()
        if now is None or next_kind(now, self.pace.rhythm, rules, self._observed_tick) is not kind:
            return False
        if kind is ChunkKind.REST and not frames_are_of_rest(frames, now):
            return False
        request = self._request(kind, self._observation(frames, now), now)
        result = self._session.infer(request)
        self._abandon.end()
        self._observed_tick = now.reading_tick
        self._trusted = result is not None and result.decision.hit
        if result is None:
            self._abandoned(kind)
            return True
        self._anew |= self._still.known_to(result.newer)
        outcome = self._send(kind, request, result, now)
        delay_s = time.monotonic() - start
        self._took(kind, delay_s, result)
        self._look_at_refresh(result.adopted)
        facts = {
            "sequence": request.observation.sequence,
            "kind": kind.name.lower(),
            "outcome": outcome,
            "tick": now.reading_tick,
            "delay_ms": delay_s * 1e3,
            "refreshing": self._session.refreshing,
            "time_ns": time.monotonic_ns(),
        }
        self._log.inference(result, facts)
        self._audit_if_due(request, result)
        self._since_repaced += 1
        if self._since_repaced >= REPACE_EVERY:
            self._repace(now)
        self._untold = True
        return True

    def _request(self, kind: ChunkKind, observation: Observation, view: ControlView) -> InferenceRequest:
        self._still.see(observation.frames)
        moving, moved = kind is ChunkKind.MOVING, self._still.moved
        executing = self._sender.sent.executing(view) if moving else None
        self._anew = executing is None
        steps, queued, inpaint = self._options.steps, None, None
        if executing is not None:
            action_s, delays = view.action_ns / 1e9, self._delays.moving
            steps = delays.steps_in((view.actions_left - 1) * action_s, self._options.least_steps, steps)
            left = executing.rest(view.reading_tick)
            queued = worth_correcting(left, self._session.policy.n_action_steps)
            if self._options.handover.kind is HandOver.INPAINT:
                delay = math.ceil(delays.p99_s / action_s)
                inpaint = inpaint_into(
                    executing, view.reading_tick, delay, self._session.policy.chunk_size, self._options.handover.horizon
                )
        # A chunk is given up between two steps.
        signal = self._abandon.begin(view.session, self._watched(kind, observation)) if steps > 1 else None
        now_ns, drop = time.monotonic_ns(), self._drop_executing
        return InferenceRequest(
            observation, now_ns, steps, None, queued, inpaint, signal, on_changed=drop, beside=moving, moved=moved
        )

    def _watched(self, kind: ChunkKind, observation: Observation) -> WatchedScene | None:
        """The scene under which the chunk is worth something. While the arm moves, pictures change by themselves: only
        a scene that the last inference found unchanged is watched, so that no two inferences in a row are given up."""
        if kind is ChunkKind.REST:
            return WatchedScene(observation.frames, STILL_MEAN, STILL_WORST)
        settings = self._session.cache.settings
        if settings is None or not self._trusted:
            return None
        return WatchedScene(observation.frames, settings.still_mean, settings.still_worst)

    def _abandoned(self, kind: ChunkKind) -> None:
        """The inference was given up between two steps; after a changed scene the next one follows at once."""
        self._log.events["abandoned"] += 1
        if self._abandon.scene_broke:
            self._observed_tick = None
            if kind is ChunkKind.REST:
                self._scene_moved()
            else:
                self._log.events["scene_broke"] += 1

    def _scene_moved(self) -> None:
        self._log.events["scene_moved"] += 1
        self._say("inference: a picture changed while a chunk for the resting arm was planned; planning again")

    def _send(self, kind: ChunkKind, request: InferenceRequest, result: InferenceResult, view: ControlView) -> str:
        """Write the chunk into the ring, unless the scene moved under a rest plan; what became of it, counted."""
        if kind is ChunkKind.REST and not still(request.observation.frames, self._pictures()):
            self._scene_moved()
            return "scene_moved"
        first = not self._sender.sent.any
        self._sender.send(kind, request.observation, result, view, self._anew)
        if first:
            self._announce()
        self._log.events["chunks"] += 1
        return "sent"

    def _look_at_refresh(self, adopted: Adopted | None) -> None:
        """Say it once when plans must wait for their refreshes."""
        settings = self._session.cache.settings
        if adopted is not None and settings is not None and not self._log.slow_refresh:
            self._log.slow_refresh = slow_refresh(adopted, settings.max_age_s)
            if self._log.slow_refresh:
                self._say(f"inference: {self._log.slow_refresh}")

    def _audit_if_due(self, request: InferenceRequest, result: InferenceResult) -> None:
        """An audit costs an inference: only when the running chunk lasts longer than two."""
        if self._audit is None or not self._audit.due(result):
            return
        view = self._control.view()
        if view is None or view.actions_left * view.action_ns / 1e9 < 2 * self._delays.fresh.p99_s:
            self._log.audit_without_time(self._session.cache.counts, self._say)
            return
        report = self._audit.run(request, result)
        if report is not None:
            self._log.line({"audit": report.error, "bound": report.bound, "tightened": report.tightened is not None})
            if report.tightened is not None:
                self._say(f"inference: {report.sentence()}")

    def _drop_executing(self) -> None:
        """The scene changed: what is left of the chunks sent so far is void, before the new one is ready."""
        self._announce(dropped_through=self._sequence - 1)

    def _camera_fault(self, message: str) -> None:
        """A frozen camera: no plan, and the executing one is void, so that the arm slows down now."""
        if not self._fault:
            self._say(f"inference: {message}")
            self._log.events["camera_faults"] += 1
            self._log.line({"camera_fault": message, "time_ns": time.monotonic_ns()})
            self._announce(dropped_through=self._sequence)
            self._summary("fault", fault=message)
        self._fault = message

    def _new_control(self, view: ControlView) -> None:
        self._control_session = view.session
        self._observed_tick = None
        self._sender.sent.clear()
        self._still = SceneStill()
        self._session.reset()
        self._announce()

    def _newest(self) -> dict[str, Frame]:
        return {name: camera.newest() for name, camera in self._cameras.items()}

    def _pictures(self) -> dict[str, Frame]:
        frames = self._newest()
        now_ns = time.monotonic_ns()
        for name, frame in frames.items():
            self._watches[name].check(frame, now_ns)
        self._looked_s = now_ns / 1e9
        if self._fault:
            self._fault = ""
            self._summary("ready")
        return frames

    def _observation(self, frames: Mapping[str, Frame], view: ControlView) -> Observation:
        self._sequence += 1
        return Observation(
            self._sequence, frames, JointReading(view.reading_tick, view.reading_ns, view.positions), self._options.task
        )

    def _facts(self) -> dict[str, Any]:
        """What gives every inference of this run back."""
        return {
            **self._session.facts(),
            "bundle_path": str(self._session.bundle.path.absolute()),
            "task": self._options.task,
            "handover": self._options.handover.kind.value,
            "inpaint_horizon": self._options.handover.horizon,
            "cameras": sorted(self._cameras),
        }

    def _ticks(self, seconds: float, view: ControlView) -> int:
        return max(1, math.ceil(seconds * 1e9 / view.period_ns))

    def _summary(self, state: str, **facts: Any) -> dict[str, Any]:
        self._untold, self._told_s = False, time.monotonic()
        meter = self._delays.all
        known = {
            "delay_ms": {"p50": meter.p50_s * 1e3, "p99": meter.p99_s * 1e3, "count": meter.count},
            "handover": self._options.handover.kind.value,
            "loop": self._session.loop.name,
            **({} if self._audit is None else {"audit_worst": self._audit.worst}),
        }
        return self._log.summary(state, self.pace, self._session.cache.counts, {**known, **facts})
