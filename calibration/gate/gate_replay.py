# SPDX-License-Identifier: Apache-2.0
"""Drive the real cache along recorded episodes and compute every hit again: what the limits do where they were not
chosen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vla_edge.bundle import Bundle
from vla_edge.calibration.gate.gate_data import Recorded
from vla_edge.calibration.gate.gate_pairs import noise_for, ranges_of
from vla_edge.engines.engine import Engine
from vla_edge.lerobot_data.meta import Episode
from vla_edge.runtime.inference.cache import CacheMode
from vla_edge.runtime.inference.scene_gate import GateSettings
from vla_edge.runtime.inference.session import InferenceRequest, PolicySession, SessionOptions
from vla_edge.runtime.inference.shadow_audit import action_error


@dataclass(frozen=True)
class Replay:
    """One policy along the episodes. hit: bool [inferences]; error: of each hit, the audit's measure; share: float32
    [hits, horizon, joints], |difference| over the joint's range; fresh_ms, gated_ms: means over all inferences of
    recomputing everything, and of what the cache left to do."""

    frames: NDArray[np.int64]
    hit: NDArray[np.bool_]
    error: NDArray[np.float64]
    share: NDArray[np.float32]
    reasons: Counter[str]
    fresh_ms: float
    gated_ms: float

    @property
    def hit_rate(self) -> float:
        return float(self.hit.mean()) if len(self.hit) else 0.0

    @property
    def joint_p95(self) -> float:
        """95th percentile of the per-joint error over the executed horizon, worst joint; 0 without a hit."""
        return float(np.percentile(self.share, 95, axis=(0, 1)).max()) if len(self.share) else 0.0

    @property
    def saved(self) -> float:
        """Share of the inference time that the cache saves."""
        return 1 - self.gated_ms / self.fresh_ms if self.fresh_ms else 0.0

    def facts(self) -> dict[str, float | int | dict[str, int]]:
        over = float(np.percentile(self.error, 95)) if len(self.error) else 0.0
        return {
            "inferences": len(self.hit),
            "hit_rate": round(self.hit_rate, 4),
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
    frames, hits, errors, shares, fresh_ms, gated_ms = [], [], [], [], [], []
    for episode in frames_of(recorded, episodes, plan.period_s):
        gated.reset()
        for index in episode:
            observation = recorded.observation(index)
            request = InferenceRequest(observation, observation.joints.time_ns, noise=noise_for(always, index))
            result, fresh = gated.infer(request), always.infer(replace(request))
            assert result is not None and fresh is not None
            frames.append(index)
            hits.append(result.decision.hit)
            fresh_ms.append(fresh.timings.total)
            gated_ms.append(result.timings.total)
            if result.decision.hit:
                shares.append(np.abs(fresh.actions[:horizon] - result.actions[:horizon]) / ranges)
                errors.append(action_error(result.actions[:horizon], fresh.actions[:horizon], ranges))
            progress()
    share = np.stack(shares) if shares else np.empty((0, horizon, len(ranges)), np.float32)
    return Replay(
        np.array(frames),
        np.array(hits),
        np.array(errors),
        share.astype(np.float32),
        Counter(gated.cache.counts.reasons),
        float(np.mean(fresh_ms)),
        _spared(np.array(hits), np.array(fresh_ms), np.array(gated_ms)),
    )


def _spared(hit: NDArray[np.bool_], fresh_ms: NDArray[np.float64], gated_ms: NDArray[np.float64]) -> float:
    """Mean ms an inference with the cache: misses at the price of a fresh one, hits at theirs, so that the noise of two
    runs of the same graphs is not counted as saved."""
    return float(np.where(hit, gated_ms, fresh_ms).mean()) if len(hit) else 0.0
