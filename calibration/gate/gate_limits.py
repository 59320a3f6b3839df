# SPDX-License-Identifier: Apache-2.0
"""From measured pairs to the limits of reuse: pure.

A pair is a reference frame, whose prefix is kept, and a later one, whose joints
are fresh. Its error is what reuse costs: the measure of the shadow audit
(`runtime/inference/shadow_audit.py`), so that what is allowed here is what the audit accepts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vla_edge.runtime.inference.scene_gate import NO_SIMILARITY

SHARE = 0.95
"""Of the reused pairs, so many must stay under the bound."""
EDGE = 0.1
LEAST = 12
"""The loosest tenth of the allowed pairs (at least LEAST) must hold the bound by itself: otherwise many still frames
would pay for the few at the limit."""
GROSS = 3.0
"""An error above so many bounds is a change that reuse must not miss; none is allowed among the reused pairs."""
MARGIN = 0.5
"""A limit stays below this share of the smallest distance at which a gross error was seen: pairs are a sample, and the
next object that moves may be a little nearer."""
GRID = 40
"""Candidate limits along each axis."""

Values = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Pairs:
    """What was measured on n pairs, arrays [n]. lag_s: seconds from the reference to now, infinite where they are of
    different episodes. still_mean, still_worst: grey levels, the worst one's of the cameras that were kept. similarity:
    cosines by name. error: share of a joint's range."""

    reference: NDArray[np.int64]
    now: NDArray[np.int64]
    lag_s: Values
    still_mean: Values
    still_worst: Values
    similarity: Mapping[str, Values]
    error: Values

    def __len__(self) -> int:
        return len(self.error)

    def within_still(self, mean: float, worst: float) -> Flags:
        return (self.still_mean <= mean) & (self.still_worst <= worst)


@dataclass(frozen=True, slots=True)
class Limits:
    """The chosen limits. auroc: how well each similarity tells pairs within the bound from those above it (None: all
    are on one side). thresholds: of every similarity that has one, by the same rule. allowed: share of the pairs within
    the limits of stillness; stable: share above the threshold."""

    still_mean: float
    still_worst: float
    similarity: str
    threshold: float
    auroc: Mapping[str, float | None]
    thresholds: Mapping[str, float]
    allowed: float
    stable: float


def auroc(higher: Values, lower: Values) -> float | None:
    """Probability that a value of `higher` is above one of `lower`, ties counting half; None when either is empty."""
    if not len(higher) or not len(lower):
        return None
    below = np.searchsorted(np.sort(lower), higher, "left") + np.searchsorted(np.sort(lower), higher, "right")
    return float(below.sum() / 2 / len(higher) / len(lower))


def holds(distance: Values, error: Values, bound: float) -> bool:
    """Whether reuse of all these pairs keeps the bound: over all, and among the tenth of greatest distance."""
    if not len(error):
        return False
    edge = np.argsort(distance, kind="stable")[-max(LEAST, round(EDGE * len(error))) :]
    return all(float((error[part] <= bound).mean()) >= SHARE for part in (slice(None), edge))


def loosest(distance: Values, error: Values, bound: float) -> float | None:
    """The greatest limit on `distance` up to which `holds` does, the margin to gross errors kept; None when there is
    none."""
    for limit in sorted(_candidates(distance), reverse=True):
        near, inside = distance <= limit / MARGIN, distance <= limit
        if not (error[near] > GROSS * bound).any() and holds(distance[inside], error[inside], bound):
            return float(limit)
    return None


def loosest_still(pairs: Pairs, bound: float) -> tuple[float, float] | None:
    """The limits (mean, worst) that allow most pairs; where several allow as many, the smallest ones. A gross error
    must
    be out by one of the two, with its margin."""
    best: tuple[int, float, float] | None = None
    gross = pairs.error > GROSS * bound
    for worst in _candidates(pairs.still_worst):
        for mean in _candidates(pairs.still_mean):
            inside = pairs.within_still(mean, worst)
            count = int(inside.sum())
            if (best is not None and count <= best[0]) or (
                gross & pairs.within_still(mean / MARGIN, worst / MARGIN)
            ).any():
                continue
            error = pairs.error[inside]
            if holds(pairs.still_mean[inside], error, bound) and holds(pairs.still_worst[inside], error, bound):
                best = (count, float(mean), float(worst))
    return None if best is None else best[1:]


def choose(pairs: Pairs, bound: float) -> Limits | None:
    """Limits of stillness, similarity and threshold for this bound; None when no reuse is within it.

    The similarity is the one with the greatest AUROC; where none can be told (all pairs on one side of the bound), the
    first; NO_SIMILARITY where the policy gives none."""
    still = loosest_still(pairs, bound)
    if still is None:
        return None
    allowed = float(pairs.within_still(*still).mean())
    if not pairs.similarity:
        return Limits(*still, NO_SIMILARITY, 1.0, {}, {}, allowed, 0.0)
    fine = pairs.error <= bound
    found = {name: auroc(values[fine], values[~fine]) for name, values in pairs.similarity.items()}
    thresholds: dict[str, float] = {}
    for name, values in pairs.similarity.items():
        limit = loosest(1 - values, pairs.error, bound)
        if limit is not None:
            # The gate asks for "above": a hair below the last cosine that is allowed.
            thresholds[name] = float(np.clip(1 - limit - 1e-6, -1, 1))
    if not thresholds:
        return None
    best = max(thresholds, key=lambda name: -1.0 if found[name] is None else found[name])  # type: ignore[arg-type,return-value]
    stable = float((pairs.similarity[best] > thresholds[best]).mean())
    return Limits(*still, best, thresholds[best], found, thresholds, allowed, stable)


def _candidates(values: Values) -> Values:
    return np.unique(np.quantile(values, np.linspace(0, 1, GRID), method="lower"))
