# SPDX-License-Identifier: Apache-2.0
"""A bundle on a backend, run through `PolicySession` as on the robot."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from typing import Any

import numpy as np

from vla_edge.benchmarks.subject import CACHED, DELTA, FRESH, OBSERVATIONS, ONE_CAMERA, SubjectSpec
from vla_edge.bundle import open_bundle
from vla_edge.calibration.precision.synthetic import noise_at, synthetic
from vla_edge.contract import Frame, Observation
from vla_edge.engines.engine import EngineOptions, load_engine
from vla_edge.errors import CheckFailed
from vla_edge.runtime.control.handover import handover_of, rows_of
from vla_edge.runtime.inference.cache import CacheMode
from vla_edge.runtime.inference.scene_gate import GateSettings
from vla_edge.runtime.inference.session import InferenceRequest, PolicySession, SessionOptions

GATE = GateSettings("pooled", -1.0, 2.0, 12.0, max_reuse=1_000_000, max_age_s=1e9)
"""Limits that reuse whatever did not change: the benchmark decides by its pictures which pieces run."""


class BundleSubject:
    """See `subjects.Subject`."""

    def __init__(self, spec: SubjectSpec) -> None:
        bundle = open_bundle(spec.path)
        engine = load_engine(spec.backend, EngineOptions(threads=spec.threads))
        self._delta = "delta" in bundle.manifest.graphs
        policy = CacheMode.DELTA if self._delta else CacheMode.STILL
        self._session = PolicySession(bundle, engine, SessionOptions(policy, steps=spec.steps, gate=GATE))
        self._data = synthetic(open_bundle(spec.inputs), OBSERVATIONS, 0)
        self._last: Observation = self._data.observations[0]
        self._count = 0
        self._queued: np.ndarray | None = None
        several = len(bundle.manifest.cameras) > 1
        few = tuple(f"{case}, {steps} steps" for steps in spec.fewer for case in (FRESH, CACHED))
        self.cases = (FRESH, CACHED, *few, *((ONE_CAMERA,) if several else ()), *((DELTA,) if self._delta else ()))
        self.facts: dict[str, Any] = {
            "detail": engine.detail,
            "digest": bundle.digest,
            "precision": dict(bundle.manifest.precision.get("graphs", {})),
            "requested": bundle.manifest.precision.get("requested"),
            "plan_error": bundle.manifest.precision.get("error"),
            "steps": spec.steps or bundle.manifest.policy.num_steps,
            "chunk": bundle.manifest.policy.chunk_size,
            "cameras": len(bundle.manifest.cameras),
            "executed": rows_of(bundle.manifest.policy, handover_of(None, None, bundle.manifest)),
        }

    def run(self, case: str, number: int) -> dict[str, float]:
        case, _, few = case.partition(", ")
        steps = int(few.removesuffix(" steps")) if few else None
        # A prefix of its own has no verdict yet, without which nothing is corrected: one camera's case gives one.
        self._session.cache.mode = CacheMode.DELTA if case == DELTA else CacheMode.STILL
        observation = self._data.observations[number % OBSERVATIONS]
        noise = self._noise(number % OBSERVATIONS)
        if case == FRESH:
            self._session.reset()
        elif case == ONE_CAMERA:
            observation = self._one_changed()
        else:
            observation = self._last
        self._last = observation
        self._count += 1
        queued = self._queued if case == DELTA else None
        result = self._session.infer(InferenceRequest(observation, self._count, steps, noise, queued))
        assert result is not None
        self._queued = result.latent
        self._check(case, len(result.decision.look), result.decision.prefix, result.decision.delta)
        timing = result.timings
        looked = max(1, len(result.decision.look))
        post = time.perf_counter()
        self._session.preparer.actions(result.latent)
        post_ms = (time.perf_counter() - post) * 1e3
        return {
            "camera preparation": timing.prepare / looked,
            "vision": timing.vision / looked if result.decision.look else 0.0,
            "prefix": timing.prefix,
            "state": timing.state,
            "step": statistics.median(timing.step) if timing.step else 0.0,
            "loop": timing.flow,
            "post-processing": post_ms,
            "inference": timing.total,
        }

    def actions(self, number: int) -> np.ndarray:
        self._session.reset()
        result = self._session.infer(InferenceRequest(self._data.observations[number], 0, noise=self._noise(number)))
        assert result is not None
        return result.normalized

    def _noise(self, number: int) -> np.ndarray:
        policy = self._session.policy
        return noise_at(number, policy.chunk_size, policy.max_action_dim)

    def _one_changed(self) -> Observation:
        """The last observation with another picture from its first camera."""
        name = next(iter(self._last.frames))
        frame = self._last.frames[name]
        other = Frame(name, 255 - frame.image, frame.captured_ns, frame.sequence + 1)
        return replace(self._last, frames={**self._last.frames, name: other})

    def _check(self, case: str, looked: int, prefix: bool, delta: bool) -> None:
        """CheckFailed unless exactly the pieces of the case ran: a benchmark must not time something else."""
        cameras = len(self._last.frames)
        expected = {
            FRESH: (cameras, True, False),
            CACHED: (0, False, False),
            ONE_CAMERA: (1, True, False),
            DELTA: (0, False, True),
        }[case]
        if (looked, prefix, delta) != expected:
            raise CheckFailed(f"case {case} ran {looked} cameras, prefix {prefix}, delta {delta}; expected {expected}")
