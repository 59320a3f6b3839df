# SPDX-License-Identifier: Apache-2.0
"""From pictures and joints to what the flow reads: which graphs run, in front of its plan or beside."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vla_edge.bundle import Bundle
from vla_edge.engines.engine import Engine
from vla_edge.engines.flow_loop import FlowLoop
from vla_edge.runtime.inference.cache import CacheKey, CacheMode, Decision, Pictures, PrefixCache, Reason
from vla_edge.runtime.inference.graphs import BoundGraphs
from vla_edge.runtime.inference.prepare import Preparer, lay_out
from vla_edge.runtime.inference.prompt import Prompt
from vla_edge.runtime.inference.refresh import Adopted, BesideRefresh, Refresh, Started
from vla_edge.runtime.inference.scene_gate import GateSettings, SceneVerdict

if TYPE_CHECKING:
    from vla_edge.runtime.inference.session import InferenceRequest, SessionOptions


@dataclass(frozen=True, slots=True)
class Judged:
    """What the gate said of a new prefix; nothing where there was none. broken: it trusted the scene until now and no
    longer does (while the arm moves, verdicts may be *changed* one after the other: that is no surprise, and the
    executing chunk was planned knowing it)."""

    verdict: SceneVerdict | None = None
    similarity: float | None = None
    broken: bool = False


@dataclass(frozen=True, slots=True)
class Scene:
    """What `see` did. took_ms: preparing, vision, prefix, state."""

    decision: Decision
    judged: Judged
    adopted: Adopted | None
    took_ms: tuple[float, float, float, float]


class Sight:
    """A session's graphs with the cache that decides which of them run. went_over: whether the last observation made it
    adopt a refresh from beside. refresh: None where prefixes are made in front."""

    def __init__(self, bundle: Bundle, engine: Engine, options: SessionOptions, settings: GateSettings | None) -> None:
        self._bundle, self._options = bundle, options
        self.preparer = Preparer(bundle)
        self.graphs = BoundGraphs(bundle, engine)
        self.cache = PrefixCache(options.cache, settings)
        self.refresh: BesideRefresh | None = None
        self.went_over = False
        self.loop: FlowLoop
        if options.refresh is Refresh.BESIDE:
            self.loop = self._sides = self.graphs.beside_loop(self.preparer.tables)
            self.refresh = BesideRefresh(self._refreshed)
        else:
            self.loop = self.graphs.loop(self.preparer.tables)

    def reset(self) -> None:
        """Forget every picture."""
        if self.refresh is not None:
            self.refresh.discard()
        self.cache.reset()

    def see(self, request: InferenceRequest, prompt: Prompt, audit: bool) -> Scene:
        """Bring the K/V up to date with the observation: decide, `vision`, `prefix`, `state`, judge."""
        start = time.perf_counter_ns()
        observation, cache = request.observation, self.cache
        pictures = self.preparer.slots({name: frame.image for name, frame in observation.frames.items()})
        self.preparer.state(observation.joints.positions, self.graphs.buffers["state"])
        key = self._key(pictures, observation.task)
        if audit:
            if self.refresh is not None:
                self.refresh.discard()
            decision, adopted, judged = cache.audit(key, pictures), None, Judged()
        else:
            decision, adopted, judged = self._decide(key, pictures, request)
        prepare_ns = time.perf_counter_ns() - start
        look_ns, vision_ns = self._look(decision, pictures)
        if decision.prefix:
            self.graphs.set_language(prompt.ids)
            if "mask" in self.graphs.buffers:
                self.graphs.set_layout(
                    lay_out(self._bundle.manifest.policy, key.cameras, prompt.mask, self.preparer.placeholders)
                )
        prefix_ms, state_ms = self.loop.encode(decision.prefix)
        took_ms = ((prepare_ns + look_ns) / 1e6, vision_ns / 1e6, prefix_ms, state_ms)
        if decision.prefix:
            judged = self._judge(decision, key, pictures, request.now_ns)
        else:
            cache.reused(decision, key)
        return Scene(decision, judged, adopted, took_ms)

    def _judge(
        self, decision: Decision, key: CacheKey, pictures: Pictures, seen_ns: int, beside: bool = False
    ) -> Judged:
        before = self.cache.gate.verdict
        verdict = self.cache.computed(decision, key, pictures, self.graphs.features(), seen_ns, beside)
        gated = self.cache.mode in (CacheMode.GATED, CacheMode.DELTA)
        broken = gated and before is SceneVerdict.STABLE and verdict is SceneVerdict.CHANGED
        return Judged(verdict, self.cache.gate.last_similarity, broken)

    def _decide(
        self, key: CacheKey, pictures: Pictures, request: InferenceRequest
    ) -> tuple[Decision, Adopted | None, Judged]:
        """What to run now, after going over to a refresh that is done. A new one begins beside the plans where the last
        prefix may still be used; where it may not, one under way is waited for before another is made in front."""
        refresh, adopted, judged = self.refresh, None, Judged()
        queued = request.queued is not None
        if refresh is not None and refresh.started is not None:
            if refresh.started.key != key:
                refresh.discard()
            elif refresh.done if request.adopt is None else request.adopt:
                adopted, judged = self._adopt(request.now_ns)
        self.went_over = adopted is not None
        decision = self.cache.decide(key, pictures, request.now_ns, queued)
        if refresh is None:
            return decision, adopted, judged
        if not decision.prefix:
            aged = self.cache.aged(request.now_ns)
            if aged:
                self._begin(Decision(Reason.MAX_AGE, aged, True), key, pictures, request.now_ns)
            return decision, adopted, judged
        beside = self.cache.beside(decision, key) if request.beside else None
        if beside is None and refresh.started is not None:
            adopted, judged = self._adopt(request.now_ns)
            decision = self.cache.decide(key, pictures, request.now_ns, queued)
            beside = self.cache.beside(decision, key) if request.beside and decision.prefix else None
        if beside is None:
            return decision, adopted, judged
        look = tuple(sorted({*decision.look, *self.cache.aged(request.now_ns)}))
        self._begin(replace(decision, look=look), key, pictures, request.now_ns)
        return beside, adopted, judged

    def _begin(self, decision: Decision, key: CacheKey, pictures: Pictures, now_ns: int) -> None:
        """Start a refresh of the decided slots beside the plans, unless one is under way."""
        assert self.refresh is not None
        if self.refresh.started is None:
            copies = [None if picture is None else picture.copy() for picture in pictures]
            self.refresh.start(Started(decision, key, copies, now_ns))

    def _adopt(self, now_ns: int) -> tuple[Adopted, Judged]:
        assert self.refresh is not None
        self.went_over = True
        started, took = self.refresh.take()
        self._sides.adopt()
        judged = self._judge(started.decision, started.key, started.pictures, started.seen_ns, beside=True)
        return Adopted((now_ns - started.seen_ns) / 1e9, *took), judged

    def _refreshed(self, started: Started) -> tuple[float, float, float]:
        """On the refreshing thread: `vision` and the prefix of newer pictures into the side that is not in use."""
        prepare_ns, vision_ns = self._look(started.decision, started.pictures)
        return prepare_ns / 1e6, vision_ns / 1e6, self._sides.refresh()

    def _look(self, decision: Decision, pictures: Pictures) -> tuple[int, int]:
        """Prepare and run `vision` for the decided slots; (preparing, vision) in ns."""
        prepare_ns = vision_ns = 0
        pixels = self.graphs.buffers["pixels"]
        for slot, picture in enumerate(pictures):
            if picture is None:
                self.graphs.clear(slot)
            elif slot in decision.look:
                start = time.perf_counter_ns()
                self.preparer.picture(slot, picture, pixels)
                middle = time.perf_counter_ns()
                self.graphs.see(slot)
                prepare_ns += middle - start
                vision_ns += time.perf_counter_ns() - middle
        return prepare_ns, vision_ns

    def _key(self, pictures: Pictures, task: str) -> CacheKey:
        return CacheKey(
            self._bundle.digest,
            task if self._bundle.manifest.tokenizer.file else "",
            tuple(picture is not None for picture in pictures),
            f"{self._options.allow_truncation} {[picture.shape for picture in pictures if picture is not None]}",
        )
