# SPDX-License-Identifier: Apache-2.0
"""Normalisation of state and action: modes, statistics, and where checkpoints keep them. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from vla_edge.errors import CheckpointError, ConfigError
from vla_edge.fields import take
from vla_edge.policies.features import ACTION, STATE

EPS = 1e-8

_BUFFER = re.compile(
    r"(?P<owner>normalize_inputs|normalize_targets|unnormalize_outputs)\.(?:(?P<data>.+)[._])?"
    r"buffer_(?P<feature>observation_state|observation_image\w*|action)\.(?P<statistic>\w+)"
)

Statistics = Mapping[str, Mapping[str, NDArray[np.float32]]]
"""Statistics by feature, then by name (mean, std, min, max, count, q01, ...)."""

MODES: dict[str, tuple[str, ...]] = {
    "IDENTITY": (),
    "MEAN_STD": ("mean", "std"),
    "MIN_MAX": ("min", "max"),
    "QUANTILES": ("q01", "q99"),
    "QUANTILE10": ("q10", "q90"),
}
"""Normalisation modes and the two statistics each needs; the last three map [low, high] to [−1, 1]."""


@dataclass(frozen=True, slots=True)
class Normalization:
    """How one feature is normalised. `mode` is MEAN_STD, MIN_MAX (quantiles included) or IDENTITY; `low` and `high` are
    mean and std, or minimum and maximum, float32 [dimensions], of a picture [3]; `eps` keeps divisors from being
    zero."""

    feature: str
    mode: str
    eps: float
    low: NDArray[np.float32]
    high: NDArray[np.float32]


@dataclass(frozen=True)
class NormalizerStep:
    """A normalizer or unnormalizer step: modes by feature type, epsilon, statistics by feature."""

    modes: Mapping[str, str]
    eps: float
    statistics: Statistics


def read_statistics(file: Path) -> Statistics:
    """Read `<feature>.<statistic>` tensors. CheckpointError: missing, truncated or damaged file."""
    if not file.is_file():
        raise CheckpointError(f"{file}: statistics are missing; copy the checkpoint again")
    try:
        flat = load_file(file)
    except SafetensorError as error:
        raise CheckpointError(f"{file}: truncated or damaged ({error}); copy the checkpoint again") from None
    statistics: dict[str, dict[str, NDArray[np.float32]]] = {}
    for name, value in flat.items():
        feature, _, statistic = name.rpartition(".")
        statistics.setdefault(feature, {})[statistic] = value.astype(np.float32)
    return statistics


def old_statistics(folder: Path, buffers: Mapping[str, NDArray[np.float32]], cameras: Sequence[str] = ()) -> Statistics:
    """Statistics of `normalize_inputs.buffer_observation_state.mean` and its like, empty where there are none.

    cameras: keys of the pictures whose statistics are wanted too. The first policies carry their dataset's name in
    front of `buffer_`; actions are taken from the outputs' buffers, else from the targets'. CheckpointError: buffers of
    several datasets.
    """
    found: dict[tuple[str, str], dict[str, NDArray[np.float32]]] = {}
    sets = set()
    for name, value in buffers.items():
        match = _BUFFER.fullmatch(name)
        if match:
            sets.add(match["data"] or "")
            found.setdefault((match["owner"], match["feature"]), {})[match["statistic"]] = value
    if len(sets) > 1:
        raise CheckpointError(
            f"{folder}: the model file holds statistics of {', '.join(sorted(sets))}; keep those of one dataset"
        )
    places = {
        **{camera: [("normalize_inputs", camera.replace(".", "_"))] for camera in cameras},
        STATE: [("normalize_inputs", "observation_state")],
        ACTION: [("unnormalize_outputs", "action"), ("normalize_targets", "action")],
    }
    return {
        feature: next(found[owner] for owner in owners if owner in found)
        for feature, owners in places.items()
        if any(owner in found for owner in owners)
    }


def of_the_right_length(statistics: Statistics, size: int) -> tuple[str, ...]:
    """Names of features whose statistics have `size` dimensions: what a feature without statistics may be called."""
    return tuple(
        feature for feature, values in statistics.items() if any(value.shape == (size,) for value in values.values())
    )


def normalization(feature: str, kind: str, size: int, step: NormalizerStep, folder: Path) -> Normalization:
    """How `step` treats one feature of `size` dimensions (a picture's: its channels); a feature without statistics
    passes unchanged."""
    mode = take(step.modes, kind, "IDENTITY", folder)
    if mode not in MODES:
        raise ConfigError(f"{folder}: normalization mode of {kind} is {mode!r}, known are {', '.join(MODES)}")
    names = MODES[mode]
    if not names or feature not in step.statistics:
        return Normalization(feature, "IDENTITY", step.eps, np.zeros(size, np.float32), np.ones(size, np.float32))
    pair = []
    for name in names:
        value = step.statistics[feature].get(name)
        if value is None:
            raise CheckpointError(
                f"{folder}: statistics of {feature} lack {name}, which mode {mode} needs; save the policy with its "
                "statistics"
            )
        expected = (size, 1, 1) if kind == "VISUAL" else (size,)
        if value.shape != expected:
            raise CheckpointError(
                f"{folder}: statistic {feature}.{name} has shape {list(value.shape)}, the feature has {list(expected)}"
            )
        if not np.isfinite(value).all():
            raise CheckpointError(
                f"{folder}: statistic {feature}.{name} is not finite; the policy was saved before it saw data"
            )
        pair.append(np.ascontiguousarray(value, dtype=np.float32).reshape(size))
    return Normalization(feature, "MEAN_STD" if mode == "MEAN_STD" else "MIN_MAX", step.eps, pair[0], pair[1])
