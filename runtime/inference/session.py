# SPDX-License-Identifier: Apache-2.0
"""From an observation to a chunk: what the inference process, lockstep, serving, calibration and evaluation call."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from enum import Enum
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vla_edge.bundle import TRAIN_DELTA, Bundle
from vla_edge.command_line import count
from vla_edge.contract import Observation
from vla_edge.engines.engine import Engine
from vla_edge.engines.flow_loop import FlowRequest, Inpaint
from vla_edge.errors import ConfigError, ObservationError
from vla_edge.runtime.inference.bundle_fit import check_fit
from vla_edge.runtime.inference.cache import CacheMode, Decision
from vla_edge.runtime.inference.prompt import Prompt, PromptEncoder
from vla_edge.runtime.inference.refresh import Adopted, Refresh
from vla_edge.runtime.inference.scene_gate import GateSettings, SceneVerdict, gate_features, read_gate
from vla_edge.runtime.inference.sight import Sight


class Noise(Enum):
    """When noise is drawn: KEPT once for an episode and instruction, in opposite pairs of rows, so that the same scene
    gives the same chunk and an arm at its target rests (docs/benchmarks.md); FRESH for every inference, as in LeRobot.
    """

    KEPT = "kept"
    FRESH = "fresh"


def add_noise_argument(group: argparse._ArgumentGroup) -> None:
    """`--noise`."""
    group.add_argument(
        "--noise",
        choices=[noise.value for noise in Noise],
        default=Noise.KEPT.value,
        help="when noise is drawn: once for an episode (kept), or for every inference (fresh) (default: kept)",
    )


def add_flow_steps_argument(group: argparse._ActionsContainer) -> None:
    """`--flow-steps`, the same in every command that plans."""
    group.add_argument("--flow-steps", type=count, help="Euler steps for one chunk (default: as the policy says)")


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """cache: when a prefix is reused. seed: of the session's noise. steps: Euler steps a chunk (None: the policy's
    num_steps). gate: limits in place of the bundle's own. allow_truncation: cut a task that is too long instead of
    refusing it. refresh: where a prefix is made anew; BESIDE needs cache STILL or GATED."""

    cache: CacheMode = CacheMode.OFF
    seed: int = 0
    steps: int | None = None
    gate: GateSettings | None = None
    allow_truncation: bool = False
    noise: Noise = Noise.KEPT
    refresh: Refresh = Refresh.FRONT

    def __post_init__(self) -> None:
        if self.refresh is Refresh.BESIDE and self.cache not in (CacheMode.STILL, CacheMode.GATED):
            raise ConfigError(f"--refresh beside goes with --cache still or gated, not with {self.cache.value}")


@dataclass(frozen=True, slots=True)
class InferenceRequest:
    """now_ns: when the observation was taken, the clock of every age. noise: float32 [C, A] (None: the session's), not
    read by a policy of one pass. queued: float32 [m ≥ 1, A] latent rows still to be executed, the first due with the
    observation (cache mode delta may correct them). inpaint: tie to the executing chunk. signal: see `FlowRequest`.
    on_changed: called before the flow when the gate finds a scene changed that was stable, so that the old chunk can be
    voided; inpaint is then dropped. adopt: whether to go over to a refresh that is under way beside the plans, waiting
    for it if need be (None: if it is done); a replay says what was recorded. beside: whether the last prefix will do
    while a newer one is made beside the plans; a plan for an arm at rest is worth its own. moved: the scene is another
    one than that of the executing chunk: inpaint is dropped where the result rests on newer pictures (`newer`)."""

    observation: Observation
    now_ns: int
    steps: int | None = None
    noise: NDArray[np.float32] | None = None
    queued: NDArray[np.float32] | None = None
    inpaint: Inpaint | None = None
    signal: NDArray[np.int32] | None = None
    on_changed: Callable[[], None] | None = None
    adopt: bool | None = None
    beside: bool = True
    moved: bool = False


@dataclass(frozen=True, slots=True)
class Timings:
    """Milliseconds of one inference by what ran; what did not is 0. step: one entry an Euler step."""

    prepare: float
    vision: float
    prefix: float
    state: float
    flow: float
    total: float
    step: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class InferenceResult:
    """actions: float32 [n, action_dim] in joint units; normalized: the same before un-normalising; latent: float32
    [n, A], what `queued` and `inpaint` of a later request take. n is the chunk size, or the rows that a delta run
    corrected. draw: index of the noise draw (None: noise was given or a delta run needed none). steps: Euler steps
    asked for; timings.step has one entry for each that ran (fewer after FINISH, none in a delta run). adopted: the
    refresh that this inference went over to. newer: whether it rests on pictures that the one before did not know.
    tied: whether inpaint was kept."""

    actions: NDArray[np.float32]
    normalized: NDArray[np.float32]
    latent: NDArray[np.float32]
    noise: NDArray[np.float32] | None
    draw: int | None
    steps: int
    decision: Decision
    verdict: SceneVerdict | None
    similarity: float | None
    timings: Timings
    adopted: Adopted | None = None
    newer: bool = False
    tied: bool = False


_NOTHING = np.zeros((0, 0), np.float32)
"""The noise of a policy of one pass."""


class SessionObserver(Protocol):
    """Is told of everything that a session's later results depend on, after it happened, on the session's thread."""

    def inferred(
        self, session: PolicySession, request: InferenceRequest, result: InferenceResult | None, audit: bool
    ) -> None: ...

    def was_reset(self) -> None: ...


class PolicySession:
    """One bundle on one engine, its cache and its noise. Not for use from two threads at once.

    Errors: BundleError or EngineError when it cannot be built; ConfigError when the cache mode needs what the bundle
    does not have.
    """

    def __init__(self, bundle: Bundle, engine: Engine, options: SessionOptions | None = None) -> None:
        self.bundle = bundle
        self.options = options or SessionOptions()
        self.policy = bundle.manifest.policy
        self._steps(None)  # before graphs are loaded
        check_fit(bundle)
        settings = gate_settings(bundle, self.options)
        sight = self._sight = Sight(bundle, engine, self.options, settings)
        self.preparer, self.graphs, self.cache, self.loop = sight.preparer, sight.graphs, sight.cache, sight.loop
        self.observer: SessionObserver | None = None
        self._encoder = PromptEncoder(bundle, self.options.allow_truncation)
        self._prompt: Prompt | None = None
        self._draws = 0
        self._drawn_for: str | None = None

    def reset(self) -> None:
        """Start of an episode: no history in the cache, other noise."""
        self._sight.reset()
        self._drawn_for = None
        if self.observer is not None:
            self.observer.was_reset()

    def facts(self) -> dict[str, Any]:
        """What it was made with, ready for JSON: enough to make the same again."""
        options, gate = self.options, self.cache.settings
        return {
            "bundle": self.bundle.digest,
            "loop": self.loop.name,
            "cache": options.cache.value,
            "refresh": options.refresh.value,
            "gate": None if gate is None else asdict(gate),
            "seed": options.seed,
            "noise": options.noise.value,
            "steps": options.steps,
            "allow_truncation": options.allow_truncation,
        }

    def check_task(self, task: str) -> None:
        """ObservationError when the policy cannot take this task: empty, or too long."""
        self._encode(task)

    @property
    def tokens_cut(self) -> int:
        """Tokens that the last task had too many; 0 unless `allow_truncation`."""
        return 0 if self._prompt is None else self._prompt.truncated

    def draw_noise(self, task: str) -> tuple[int, NDArray[np.float32]]:
        """(index, noise float32 [C, A]) for an inference of this task; seed, index and kind alone give it back
        (`noise_of`)."""
        if self._drawn_for != task or self.options.noise is Noise.FRESH:
            self._draws += 1
            self._drawn_for = task
        index = self._draws - 1
        shape = self.policy.chunk_size, self.policy.max_action_dim
        return index, noise_of(self.options.seed, index, shape, self.options.noise)

    def infer(self, request: InferenceRequest) -> InferenceResult | None:
        """One inference; None when the request's signal abandoned it. ObservationError names a bad field."""
        return self._observed(request, audit=False)

    def recompute(self, request: InferenceRequest) -> InferenceResult | None:
        """The same with every piece fresh, whatever the cache would say: what an audit compares with. The cache keeps
        the fresh prefix; the run counts as an audit."""
        return self._observed(request, audit=True)

    def reuses(self, decision: Decision) -> bool:
        """Whether its chunk rests on what an earlier picture left: a prefix, or without one any camera's tokens."""
        return decision.hit or bool(decision.kept and not self.bundle.manifest.programme.scene)

    @property
    def refreshing(self) -> bool:
        """Whether a prefix is being made beside the plans."""
        refresh = self._sight.refresh
        return refresh is not None and refresh.started is not None and not refresh.done

    @property
    def went_over(self) -> bool:
        """Whether the last inference adopted a refresh from beside."""
        return self._sight.went_over

    def settle(self) -> None:
        """Wait for a refresh that is under way beside the plans; the next inference goes over to it."""
        if self._sight.refresh is not None:
            self._sight.refresh.wait()

    def _observed(self, request: InferenceRequest, audit: bool) -> InferenceResult | None:
        result = self._infer(request, audit)
        if self.observer is not None:
            self.observer.inferred(self, request, result, audit)
        return result

    def _infer(self, request: InferenceRequest, audit: bool) -> InferenceResult | None:
        start = time.perf_counter_ns()
        steps, noise = self._steps(request.steps), self._checked_noise(request.noise)
        scene = self._sight.see(request, self._encode(request.observation.task), audit)
        if scene.judged.broken and request.on_changed is not None:
            request.on_changed()
        flow_start = time.perf_counter_ns()
        draw: int | None = None
        step_ms: tuple[float, ...] = ()
        newer, tied = bool(scene.decision.look) or scene.adopted is not None, False
        if scene.decision.delta:
            assert request.queued is not None
            latent, noise = self._correct(self.preparer.unanchored(request.queued)), None
        else:
            if not self.bundle.manifest.programme.step:
                noise = None
            elif noise is None:
                draw, noise = self.draw_noise(request.observation.task)
            inpaint = None if scene.judged.broken or (request.moved and newer) else request.inpaint
            if inpaint is not None:
                tied = True
                inpaint = replace(inpaint, target=self.preparer.unanchored(inpaint.target))
            start_from = _NOTHING if noise is None else noise
            report = self.loop.denoise(FlowRequest(steps, start_from, inpaint, request.signal))
            if report.latent is None:
                return None
            latent, step_ms = report.latent, report.step_ms
        flow_ms = (time.perf_counter_ns() - flow_start) / 1e6
        actions, normalized = self.preparer.actions(latent)
        total_ms = (time.perf_counter_ns() - start) / 1e6
        timings = Timings(*scene.took_ms, flow_ms, total_ms, step_ms)
        latent, judged = self.preparer.anchored(latent), scene.judged
        planned = (actions, normalized, latent, noise, draw, steps)
        why = (scene.decision, judged.verdict, judged.similarity, timings, scene.adopted)
        return InferenceResult(*planned, *why, newer, tied)

    def _correct(self, queued: NDArray[np.float32]) -> NDArray[np.float32]:
        """The queued rows corrected in one delta step; rows behind them repeat the last one and are dropped again."""
        rows = len(queued)
        chunk = self.graphs.buffers["chunk"]
        chunk[0, :rows] = queued
        chunk[0, rows:] = queued[-1]
        self.graphs.correct()
        return np.array(self.graphs.buffers["corrected"][0, :rows], np.float32)

    def _encode(self, task: str) -> Prompt:
        if self._prompt is None or self._prompt.task != task:
            self._prompt = self._encoder.encode(task)
        return self._prompt

    def _steps(self, wanted: int | None) -> int:
        return self.policy.checked_steps(self.options.steps if wanted is None else wanted)

    def _checked_noise(self, noise: NDArray[np.float32] | None) -> NDArray[np.float32] | None:
        expected = (self.policy.chunk_size, self.policy.max_action_dim)
        if noise is None:
            return None
        if noise.shape != expected or noise.dtype != np.float32:
            raise ObservationError(f"noise is {noise.dtype} {list(noise.shape)}; expected float32 {list(expected)}")
        if not np.isfinite(noise).all():
            raise ObservationError("noise has a value that is not finite; draw it anew")
        return noise


def worth_correcting(left: NDArray[np.float32], executed: int) -> NDArray[np.float32] | None:
    """The queued rows that are left, where they are worth a correction: the corrected chunk is no longer than they are,
    so a whole one is planned once less than half of what is `executed` of a chunk is left."""
    return left if 2 * len(left) >= executed else None


def noise_of(seed: int, index: int, shape: tuple[int, int], kind: Noise = Noise.FRESH) -> NDArray[np.float32]:
    """Draw `index` of a session's noise: standard normal float32 (PCG64 seeded with both numbers).

    KEPT: every second row is the one before it with the other sign. A draw bends the whole chunk a little; in opposite
    pairs most of that cancels, where kept it would stay for the episode (benchmarks/LOG.md).
    """
    noise = np.random.Generator(np.random.PCG64([seed, index])).standard_normal(shape, np.float32)
    if kind is Noise.KEPT:
        noise[1::2] = -noise[: shape[0] // 2 * 2 : 2]
    return noise


def cache_mode(wanted: str | None, bundle: Bundle, refresh: Refresh = Refresh.FRONT) -> CacheMode:
    """What `--cache` asked for; without it `still`, which reuses most at equal error (docs/benchmarks.md), where the
    bundle is calibrated or a refresh beside the plans needs it, else `off`."""
    if wanted is not None:
        return CacheMode(wanted)
    return CacheMode.OFF if refresh is Refresh.FRONT and read_gate(bundle) is None else CacheMode.STILL


def gate_settings(bundle: Bundle, options: SessionOptions) -> GateSettings | None:
    """The limits of reuse, as given or the bundle's own. ConfigError: a cache or a refresh that the bundle cannot
    have."""
    beside = options.refresh is Refresh.BESIDE
    if beside and not bundle.manifest.programme.step:
        raise ConfigError(
            "this policy makes its chunk in one pass, nothing can be refreshed beside it; choose --refresh front"
        )
    settings = options.gate or read_gate(bundle)
    judged = options.cache in (CacheMode.GATED, CacheMode.DELTA)
    if judged and not bundle.manifest.programme.scene:
        raise ConfigError(
            f"--cache {options.cache.value}: this policy has no prefix that a gate could judge; choose --cache still, "
            "which keeps the tokens of still pictures"
        )
    if options.cache is CacheMode.OFF and settings is None:
        return None
    if settings is None:
        asked, front = ("--refresh beside", "--refresh front ") if beside else (f"--cache {options.cache.value}", "")
        raise ConfigError(
            f"{asked} needs a calibrated bundle, this one has no thresholds; run vla-calibrate gate, or choose "
            f"{front}--cache off"
        )
    feature = "pooled" if settings.similarity == "pooled" else "cls"
    made = gate_features(bundle)
    if feature not in made and (made or judged):
        raise ConfigError(
            f"gate similarity {settings.similarity} needs the output {feature} that this bundle's scene graph does "
            "not have; calibrate with pooled"
        )
    if options.cache is CacheMode.DELTA and (why := bundle.manifest.why_not_delta):
        raise ConfigError(f"--cache delta: {why}; {TRAIN_DELTA}, or choose --cache still")
    return settings
