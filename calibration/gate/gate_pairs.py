# SPDX-License-Identifier: Apache-2.0
"""Measure pairs of recorded frames: stillness, similarities, and what a prefix kept from the first costs at the
second."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vla_edge.bundle import Bundle
from vla_edge.calibration.gate.gate_data import Recorded
from vla_edge.calibration.gate.gate_limits import Pairs
from vla_edge.engines.engine import Engine
from vla_edge.errors import ConfigError, DatasetError
from vla_edge.lerobot_data.meta import Episode
from vla_edge.runtime.inference.cache import CacheMode
from vla_edge.runtime.inference.scene_gate import (
    SIMILARITIES,
    GateSettings,
    block_means,
    gate_features,
    similarity,
    still_reading,
)
from vla_edge.runtime.inference.session import (
    InferenceRequest,
    InferenceResult,
    PolicySession,
    SessionOptions,
    noise_of,
)
from vla_edge.runtime.inference.shadow_audit import action_error
from vla_edge.runtime.inference.units import joint_ranges, read_tables

NOISE_SEED = 21
REUSE_ALL = GateSettings(
    "pooled", threshold=-1.0, still_mean=255.0, still_worst=255.0, max_reuse=1 << 30, max_age_s=1e9
)

SAME_PICTURES = replace(REUSE_ALL, still_mean=0.0, still_worst=0.0)
"""Nothing is kept but of the very same picture, which is how the pairs say what to keep."""

Progress = Callable[[], None]


@dataclass(frozen=True, slots=True)
class PairPlan:
    """references: frames whose prefix is kept, spread over the episodes. lags: later frames of the episode for each,
    spread over max_age_s. others: frames of other episodes with the same task for each."""

    references: int = 120
    lags: int = 6
    others: int = 2
    max_age_s: float = 2.0


@dataclass(frozen=True)
class Seen:
    """What a fresh inference left: small luma pictures by camera, gate features, actions [C, joints]."""

    blocks: dict[str, NDArray[np.float32]]
    features: dict[str, NDArray[np.float32]]
    actions: NDArray[np.float32]


@dataclass(frozen=True)
class Measured:
    """pairs, and the medians of a fresh inference and of one that reused its prefix, ms on this host, run in turn."""

    pairs: Pairs
    fresh_ms: float
    reused_ms: float


def planned_pairs(recorded: Recorded, episodes: Sequence[Episode], plan: PairPlan) -> list[tuple[int, int]]:
    """(reference, now) frame numbers, references rising. DatasetError: the episodes are too short for a single pair."""
    data, generator = recorded.dataset, np.random.default_rng(0)
    frames = np.concatenate([np.arange(episode.from_index, episode.to_index - 1) for episode in episodes])
    if not len(frames):
        raise DatasetError(f"{data.root}: no episode has two frames; record longer ones")
    tasks, furthest = data.column("task_index"), max(1, round(plan.max_age_s * data.fps))
    lags = sorted({max(1, round(furthest ** (step / max(1, plan.lags - 1)))) for step in range(plan.lags)})
    pairs = []
    for reference in sorted(
        {int(frames[place]) for place in np.linspace(0, len(frames) - 1, min(plan.references, len(frames))).astype(int)}
    ):
        own = data.episode_of(reference)
        near = [
            reference + lag
            for lag in lags
            if reference + lag < own.to_index and tasks[reference + lag] == tasks[reference]
        ]
        elsewhere = frames[(tasks[frames] == tasks[reference]) & ((frames < own.from_index) | (frames >= own.to_index))]
        far = generator.choice(elsewhere, min(plan.others, len(elsewhere)), replace=False)
        pairs += [(reference, int(now)) for now in [*near, *far]]
    return pairs


def similarity_names(bundle: Bundle) -> list[str]:
    """The similarities this bundle can give."""
    return [name for name in SIMILARITIES if ("pooled" if name == "pooled" else "cls") in gate_features(bundle)]


def kept_alone(bundle: Bundle, recorded: Recorded) -> list[tuple[str, ...]]:
    """The cameras whose tokens may be kept while the others' are made anew and no prefix is: one at a time."""
    single = bool(bundle.manifest.programme.scene) or len(recorded.cameras) == 1
    return [] if single else [(name,) for name in recorded.cameras]


def ranges_of(bundle: Bundle) -> NDArray[np.float32]:
    """Each joint's range; ConfigError for a bundle without action statistics, in which an error has no measure."""
    ranges = joint_ranges(read_tables(bundle), bundle.manifest.policy.action_dim)
    if ranges is None:
        raise ConfigError(
            f"{bundle.path}: no action statistics, so an error is no share of a joint's range; export a checkpoint "
            "with statistics"
        )
    return ranges


def noise_for(session: PolicySession, index: int) -> NDArray[np.float32]:
    """The noise that every inference on frame `index` starts from."""
    return noise_of(NOISE_SEED, index, (session.policy.chunk_size, session.policy.max_action_dim))


def measure(
    bundle: Bundle,
    engine: Engine,
    recorded: Recorded,
    pairs: Sequence[tuple[int, int]],
    progress: Progress = lambda: None,
) -> Measured:
    """Run every pair: fresh at both frames, and now's joints on what is kept of the reference. A policy without a
    prefix keeps each camera's tokens by itself, so each pair is tried with all kept and with each alone. `progress` is
    called once for each inference: frames twice at most, then pairs."""
    session = PolicySession(bundle, engine, SessionOptions(CacheMode.STILL, gate=SAME_PICTURES))
    alone = kept_alone(bundle, recorded)
    ranges, horizon, names = ranges_of(bundle), bundle.manifest.policy.n_action_steps, similarity_names(bundle)
    seen: dict[int, Seen] = {}
    for index in sorted({index for pair in pairs for index in pair}):
        seen[index] = _look(session, recorded, index)
        progress()
    tried, error, current = [], [], -1
    fresh_ms, reused_ms = [], []
    for reference, now in pairs:
        if reference != current:
            observation = recorded.observation(reference)
            session.reset()
            fresh_ms.append(
                _inferred(session, InferenceRequest(observation, 0, noise=noise_for(session, reference))).timings.total
            )
            current = reference
            progress()
        newer = recorded.observation(now).frames if alone else {}
        for kept in (tuple(recorded.cameras), *alone):
            frames = {name: (observation.frames if name in kept else newer)[name] for name in recorded.cameras}
            mixed = replace(observation, frames=frames, joints=recorded.joints(now))
            made = _inferred(session, InferenceRequest(mixed, 0, noise=noise_for(session, now)))
            tried.append((reference, now, kept))
            error.append(action_error(made.actions[:horizon], seen[now].actions[:horizon], ranges))
            if made.decision.hit:
                reused_ms.append(made.timings.total)
            progress()
    return Measured(
        _collected(recorded, tried, seen, names, np.array(error)),
        float(np.median(fresh_ms)),
        float(np.median(reused_ms)),
    )


def _look(session: PolicySession, recorded: Recorded, index: int) -> Seen:
    observation = recorded.observation(index)
    session.reset()
    result = _inferred(session, InferenceRequest(observation, 0, noise=noise_for(session, index)))
    features = {name: array.copy() for name, array in session.graphs.features().items()}
    return Seen(
        {name: block_means(frame.image) for name, frame in observation.frames.items()}, features, result.actions
    )


def _inferred(session: PolicySession, request: InferenceRequest) -> InferenceResult:
    result = session.infer(request)
    assert result is not None
    return result


def _collected(
    recorded: Recorded,
    tried: Sequence[tuple[int, int, tuple[str, ...]]],
    seen: dict[int, Seen],
    names: list[str],
    error: NDArray[np.float64],
) -> Pairs:
    data = recorded.dataset
    pairs = [(reference, now) for reference, now, _ in tried]
    readings = [
        [still_reading(seen[now].blocks[name], seen[reference].blocks[name]) for name in kept]
        for reference, now, kept in tried
    ]
    same = [data.episode_of(reference).index == data.episode_of(now).index for reference, now in pairs]
    return Pairs(
        reference=np.array([reference for reference, _ in pairs]),
        now=np.array([now for _, now in pairs]),
        lag_s=np.array(
            [(now - reference) / data.fps if near else np.inf for near, (reference, now) in zip(same, pairs)]
        ),
        still_mean=np.array([max(reading.mean for reading in row) for row in readings]),
        still_worst=np.array([max(reading.worst for reading in row) for row in readings]),
        similarity={
            name: np.array([similarity(name, seen[now].features, seen[reference].features) for reference, now in pairs])
            for name in names
        },
        error=error,
    )
