# SPDX-License-Identifier: Apache-2.0
"""Is the scene still the one the prefix was computed from? Two tests, both pure (docs/runtime.md).

The test of stillness compares pictures and can say so before anything ran. The gate compares what the prefix itself
saw, through learned observation tokens (`cls`) or, for policies without them, the mean image feature (`pooled`).
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import Enum
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from vla_edge.bundle import Bundle
from vla_edge.errors import BundleError, ConfigError
from vla_edge.fields import build

BLOCKS = (24, 32)
"""Rows and columns of the small luma picture: blocks of 20×20 pixels at 480×640."""

SIMILARITIES = ("00", "11", "01", "pooled")
"""Token i of the new prefix against token j of the reference, "ij"; or the mean image feature of both."""

NO_SIMILARITY = "none"
"""Of a policy without a prefix: what is kept is each camera's tokens, by the stillness of its picture alone."""


@dataclass(frozen=True, slots=True)
class GateSettings:
    """Limits of reuse, as calibration measured them.

    similarity: one of SIMILARITIES, or NO_SIMILARITY; threshold: cosine above which the scene is stable. still_mean,
    still_worst: grey levels (0..255) of the mean and of the worst block up to which a picture is unchanged. max_reuse:
    inferences in a row that look at nothing. max_age_s: age of the oldest picture behind one. bound: share of a
    joint's range the action error may reach.
    """

    similarity: str
    threshold: float
    still_mean: float
    still_worst: float
    max_reuse: int = 10
    max_age_s: float = 2.0
    bound: float = 0.01

    def __post_init__(self) -> None:
        known = (*SIMILARITIES, NO_SIMILARITY)
        if self.similarity not in known:
            raise ConfigError(f"gate similarity is {self.similarity!r}; known: {', '.join(known)}")
        numbers = (self.threshold, self.still_mean, self.still_worst, self.max_age_s, self.bound)
        if (
            not np.isfinite(numbers).all()
            or min(numbers[1:]) < 0
            or not -1 <= self.threshold <= 1
            or self.max_reuse < 0
        ):
            raise ConfigError(
                f"gate limits must be finite, not negative, the threshold a cosine: {self}; calibrate again"
            )

    def tightened(self) -> GateSettings:
        """Halfway to never reusing: limits of stillness halved, the threshold half as far from 1."""
        return replace(
            self, threshold=(1 + self.threshold) / 2, still_mean=self.still_mean / 2, still_worst=self.still_worst / 2
        )


def read_gate(bundle: Bundle) -> GateSettings | None:
    """The limits that `vla-calibrate gate` wrote into the manifest; None for a bundle that was not calibrated."""
    gate = bundle.manifest.gate
    return settings_of(gate, bundle.path) if "threshold" in gate else None


def settings_of(limits: Mapping[str, Any], where: object) -> GateSettings:
    """The limits that a manifest or a record holds among other facts. Files of before call those of stillness
    guard_mean and guard_worst. BundleError: one is missing, or no number."""
    known = [item.name for item in fields(GateSettings)]
    found = {name.replace("guard_", "still_"): value for name, value in limits.items()}
    content = {name: found[name] for name in known if name in found}
    return build(GateSettings, content, f"{where}: gate", BundleError, "run vla-calibrate gate again")


def gate_features(bundle: Bundle) -> set[str]:
    """What a gate can compare of this bundle: `cls` and `pooled` where a scene graph makes them (an untrained CLS head
    is no output)."""
    graphs = bundle.manifest.graphs
    return {spec.name for name in bundle.manifest.programme.scene for spec in graphs[name].outputs} & {"cls", "pooled"}


@dataclass(frozen=True, slots=True)
class StillReading:
    """Difference of two pictures in grey levels: mean over the blocks, and the worst block."""

    mean: float
    worst: float

    def within(self, settings: GateSettings) -> bool:
        return self.mean <= settings.still_mean and self.worst <= settings.still_worst


def block_means(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Mean luma of each block, float32 [24, 32], read-only, of an RGB picture uint8 [height, width, 3].

    Made once a picture, however many ask (planning, cache, watch), and kept as long as the picture lives: nobody writes
    to one after it was handed over (contract.Frame)."""
    key = id(image)
    known = _MEANS.get(key)
    if known is not None and known[0]() is image:
        return known[1]
    luma = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    means = np.asarray(cv2.resize(luma, BLOCKS[::-1], interpolation=cv2.INTER_AREA), np.float32)
    means.flags.writeable = False
    _MEANS[key] = (weakref.ref(image, lambda _: _MEANS.pop(key, None)), means)
    return means


_MEANS: dict[int, tuple[weakref.ref[NDArray[np.uint8]], NDArray[np.float32]]] = {}
"""By the picture's id, which is its own while the reference is alive."""


def still_reading(now: NDArray[np.float32], cached: NDArray[np.float32]) -> StillReading:
    """Compare two results of `block_means`."""
    difference = np.abs(now - cached)
    return StillReading(float(difference.mean()), float(difference.max()))


class SceneVerdict(Enum):
    """What the gate says about the last computed prefix."""

    NO_HISTORY = "no_history"
    STABLE = "stable"
    CHANGED = "changed"


def similarity(
    kind: str, now: Mapping[str, NDArray[np.float32]], reference: Mapping[str, NDArray[np.float32]]
) -> float:
    """Cosine named by `kind` between the features of two prefixes (`cls` [n, E], `pooled` [H])."""
    if kind == "pooled":
        return _cosine(now["pooled"], reference["pooled"])
    first, second = int(kind[0]), int(kind[1])
    return _cosine(now["cls"][first], reference["cls"][second])


def _cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    a64, b64 = a.astype(np.float64), b.astype(np.float64)
    norm = float(np.linalg.norm(a64) * np.linalg.norm(b64))
    return float(a64 @ b64) / norm if norm > 0 else 0.0


class SceneGate:
    """Judges each computed prefix against a reference that only a *changed* verdict (or the first prefix) moves, so
    that a slow drift adds up until it is seen."""

    def __init__(self) -> None:
        self._reference: dict[str, NDArray[np.float32]] | None = None
        self.last_similarity: float | None = None
        self.verdict = SceneVerdict.NO_HISTORY

    def reset(self) -> None:
        """Forget the reference: the next prefix becomes it, without a verdict."""
        self._reference = None
        self.last_similarity = None
        self.verdict = SceneVerdict.NO_HISTORY

    def judge(self, features: Mapping[str, NDArray[np.float32]], settings: GateSettings) -> SceneVerdict:
        """The verdict on a new prefix. `features` is copied when it becomes the reference."""
        if self._reference is None:
            self._reference = {name: array.copy() for name, array in features.items()}
            return self.verdict
        self.last_similarity = similarity(settings.similarity, features, self._reference)
        if self.last_similarity > settings.threshold:
            self.verdict = SceneVerdict.STABLE
        else:
            self.verdict = SceneVerdict.CHANGED
            self._reference = {name: array.copy() for name, array in features.items()}
        return self.verdict
