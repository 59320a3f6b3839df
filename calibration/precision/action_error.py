# SPDX-License-Identifier: Apache-2.0
"""How far the actions of one bundle are from those of another that started from the same noise."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from vla_edge.bundle import Bundle
from vla_edge.calibration.precision.synthetic import Measured
from vla_edge.engines.engine import Engine
from vla_edge.runtime.inference.session import InferenceRequest, PolicySession
from vla_edge.runtime.inference.units import ACTION, read_tables


@dataclass(frozen=True, slots=True)
class ActionErrorBound:
    """joint_p95: 95th percentile of |difference| over a joint's range, worst joint. cosine: between all chunks."""

    joint_p95: float = 0.005
    cosine: float = 0.999


@dataclass(frozen=True, slots=True)
class ActionError:
    """Of normalised actions: cosine over all chunks, the worst single chunk's, ‖difference‖ / ‖reference‖; joint_p95 as
    in `ActionErrorBound`."""

    cosine: float
    worst_cosine: float
    relative: float
    joint_p95: float

    def within(self, bound: ActionErrorBound) -> bool:
        return self.joint_p95 <= bound.joint_p95 and self.cosine >= bound.cosine

    def facts(self) -> dict[str, float]:
        return {name: round(value, 6) for name, value in asdict(self).items()}


def chunks(bundle: Bundle, engine: Engine, data: Measured) -> NDArray[np.float32]:
    """Normalised actions float32 [observations, C, action_dim], everything computed anew for each."""
    session = PolicySession(bundle, engine)
    found = []
    for observation, noise in zip(data.observations, data.noise):
        result = session.infer(InferenceRequest(observation, 0, noise=noise))
        assert result is not None
        found.append(result.normalized)
    return np.stack(found)


def action_error(found: NDArray[np.float32], reference: NDArray[np.float32], spans: NDArray[np.float32]) -> ActionError:
    """Chunks [observations, C, joints] against the reference's; `spans`: `joint_spans`. Not finite counts as worst."""
    if not np.isfinite(found).all():
        return ActionError(-1.0, -1.0, float("inf"), float("inf"))
    difference = found.astype(np.float64) - reference
    single = [_cosine(one, other) for one, other in zip(found, reference)]
    return ActionError(
        cosine=_cosine(found, reference),
        worst_cosine=min(single),
        relative=float(np.linalg.norm(difference) / np.linalg.norm(reference)),
        joint_p95=float((np.percentile(np.abs(difference), 95, axis=(0, 1)) / spans).max()),
    )


def joint_spans(bundle: Bundle) -> NDArray[np.float32]:
    """A joint's range in normalised units float32 [action_dim]: of the statistics' min and max where the bundle has
    them, else six standard deviations."""
    mode = next((item.mode for item in bundle.manifest.normalization if item.feature == ACTION), "IDENTITY")
    if mode == "MIN_MAX":
        return np.full(bundle.manifest.policy.action_dim, 2.0, np.float32)
    tables = read_tables(bundle)
    if mode == "MEAN_STD" and f"{ACTION}.min" in tables:
        return ((tables[f"{ACTION}.max"] - tables[f"{ACTION}.min"]) / np.maximum(tables[f"{ACTION}.std"], 1e-8)).astype(
            np.float32
        )
    return np.full(bundle.manifest.policy.action_dim, 6.0, np.float32)


def _cosine(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    first, second = one.astype(np.float64).ravel(), other.astype(np.float64).ravel()
    return float(first @ second / max(np.linalg.norm(first) * np.linalg.norm(second), 1e-30))
