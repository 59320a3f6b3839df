# SPDX-License-Identifier: Apache-2.0
"""Drive the real cache along recorded episodes and compute every hit again: what the limits do where they were not
chosen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_edge.bundle import Bundle
from vla_edge.calibration.gate.gate_data import Recorded
from vla_edge.calibration.gate.gate_pairs import noise_for, ranges_of
from vla_edge.engines.engine import Engine
from vla_edge.lerobot_data.meta import Episode
from vla_edge.runtime.inference.cache import CacheMode
from vla_edge.runtime.inference.scene_gate import GateSettings
from vla_edge.runtime.inference.session import (
    InferenceRequest,
    InferenceResult,
    PolicySession,
    SessionOptions,
    worth_correcting,
)
from vla_edge.runtime.inference.shadow_audit import action_error


@dataclass(frozen=True)
class Replay:
    """One policy along the episodes. hit: bool [inferences], which of them reused something (`PolicySession.reuses`);
    kept: share of the pictures whose tokens were used again; error: of each hit, the audit's measure; share: float32
    [hits, horizon, joints], |difference| over the joint's range, NaN behind the end of a corrected chunk; queued: the
    same of the rows that `delta` corrected as they were before, NaN elsewhere; fresh_ms, gated_ms: means over all
    inferences of recomputing everything, and of what the cache left to do."""

    frames: NDArray[np.int64]
    hit: NDArray[np.bool_]
    kept: float
    error: NDArray[np.float64]
    share: NDArray[np.float32]
    queued: NDArray[np.float32]
    reasons: Counter[str]
    fresh_ms: float
    gated_ms: float

    @property
    def hit_rate(self) -> float:
        return float(self.hit.mean()) if len(self.hit) else 0.0

    @property
    def joint_p95(self) -> float:
        """95th percentile of the per-joint error over the executed horizon, worst joint; 0 without a hit."""
        return float(np.nanpercentile(self.share, 95, axis=(0, 1)).max()) if len(self.share) else 0.0

    @property
    def correction(self) -> float | None:
        """Mean error of the corrected rows divided by theirs before; None where no chunk was corrected."""
        there = ~np.isnan(self.queued)
        before = float(self.queued[there].mean()) if there.any() else 0.0
        return float(self.share[there].mean()) / before if before else None

    @property
    def saved(self) -> float:
        """Share of the inference time that the cache saves."""
        return 1 - self.gated_ms / self.fresh_ms if self.fresh_ms else 0.0

    def facts(self) -> dict[str, Any]:
        over = float(np.percentile(self.error, 95)) if len(self.error) else 0.0
        corrected = {} if self.correction is None else {"error_of_uncorrected": round(self.correction, 4)}
        return {
            **corrected,
            "inferences": len(self.hit),
            "hit_rate": round(self.hit_rate, 4),
            "pictures_kept": round(self.kept, 4),
            "error_joint_p95": round(self.joint_p95, 6),
            "error_chunk_p95": round(over, 6),
            "time_saved": round(self.saved, 4),
            "reasons": dict(self.reasons),
        }


@dataclass(frozen=True, slots=True)
class ReplayPlan:
    """policy with its limits; period_s: from one inference to the next."""

    policy: CacheMode
    settings: GateSettings
    period_s: float = 0.25


def frames_of(recorded: Recorded, episodes: Sequence[Episode], period_s: float) -> list[list[int]]:
    """Frame numbers of the inferences, one list an episode."""
    every = max(1, round(period_s * recorded.dataset.fps))
    return [list(range(episode.from_index, episode.to_index, every)) for episode in episodes]


def replay(
    bundle: Bundle,
    engine: Engine,
    recorded: Recorded,
    episodes: Sequence[Episode],
    plan: ReplayPlan,
    progress: Callable[[], None] = lambda: None,
) -> Replay:
    """Every episode from a reset on, at the recording's own times. `progress`: once an inference."""
    gated = PolicySession(bundle, engine, SessionOptions(plan.policy, gate=plan.settings))
    always = PolicySession(bundle, engine)
    ranges, horizon = ranges_of(bundle), bundle.manifest.policy.n_action_steps
    per_frame = (bundle.manifest.fps or recorded.dataset.fps) / recorded.dataset.fps
    frames: list[int] = []
    hits, errors, shares, queues, fresh_ms, gated_ms = [], [], [], [], [], []
    for episode in frames_of(recorded, episodes, plan.period_s):
        gated.reset()
        last: InferenceResult | None = None
        for index in episode:
            observation, passed = recorded.observation(index), round(per_frame * (index - frames[-1])) if last else 0
            request = InferenceRequest(observation, observation.joints.time_ns, noise=noise_for(always, index))
            queued = worth_correcting(last.latent[passed:], horizon) if last else None
            result, fresh = gated.infer(replace(request, queued=queued)), always.infer(request)
            assert result is not None and fresh is not None
            before = last.actions[passed:] if last and result.decision.delta else np.empty((0, len(ranges)), np.float32)
            last = result
            frames.append(index)
            hits.append(gated.reuses(result.decision))
            fresh_ms.append(fresh.timings.total)
            gated_ms.append(result.timings.total)
            if hits[-1]:
                rows = len(result.actions[:horizon])
                shares.append(_differences(result.actions, fresh.actions, ranges, horizon))
                queues.append(_differences(before, fresh.actions, ranges, horizon))
                errors.append(action_error(result.actions[:rows], fresh.actions[:rows], ranges))
            progress()
    none = np.empty((0, horizon, len(ranges)), np.float32)
    counts = gated.cache.counts
    pictures = counts.vision_hits.total() + counts.vision_runs.total()
    return Replay(
        np.array(frames),
        np.array(hits),
        counts.vision_hits.total() / max(1, pictures),
        np.array(errors),
        np.stack(shares) if shares else none,
        np.stack(queues) if queues else none,
        Counter(counts.reasons),
        float(np.mean(fresh_ms)),
        _spared(np.array(hits), np.array(fresh_ms), np.array(gated_ms)),
    )


def _differences(
    actions: NDArray[np.float32], fresh: NDArray[np.float32], ranges: NDArray[np.float32], horizon: int
) -> NDArray[np.float32]:
    """|difference| over the joint's range [horizon, joints], NaN behind the end of `actions`."""
    found = np.full((horizon, len(ranges)), np.nan, np.float32)
    rows = min(horizon, len(actions))
    found[:rows] = np.abs(fresh[:rows] - actions[:rows]) / ranges
    return found


def _spared(hit: NDArray[np.bool_], fresh_ms: NDArray[np.float64], gated_ms: NDArray[np.float64]) -> float:
    """Mean ms an inference with the cache: misses at the price of a fresh one, hits at theirs, so that the noise of two
    runs of the same graphs is not counted as saved."""
    return float(np.where(hit, gated_ms, fresh_ms).mean()) if len(hit) else 0.0
