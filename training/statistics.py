# SPDX-License-Identifier: Apache-2.0
"""Which statistics a run normalises with: the union of its datasets, the first one's, or the checkpoint's own."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vla_edge.errors import DatasetError
from vla_edge.lerobot_data.layout import joint_names
from vla_edge.lerobot_data.reader import Dataset
from vla_edge.lerobot_data.stats import aggregate
from vla_edge.policies.features import ACTION, STATE
from vla_edge.policies.normalization import NormalizerStep, Statistics, normalization
from vla_edge.policies.processing import ProcessorSettings

FEATURES = (STATE, ACTION)
FAR = 1e4
"""Standard deviations from the mean that no value of a robot like the statistics' own has."""


def chosen_statistics(datasets: Sequence[Dataset], how: str) -> Statistics:
    """Statistics of state and action, float32: `union` weighs every dataset by its frames, `first` takes the first.

    DatasetError when the datasets' dimensions differ or a statistic is missing or not finite.
    """
    parts = []
    for dataset in datasets if how == "union" else datasets[:1]:
        stats = dataset.stats
        for feature in FEATURES:
            if feature not in stats or not {"mean", "std", "count"} <= set(stats[feature]):
                raise DatasetError(f"{dataset.root}: no statistics of {feature}; run `vla-data stats` on it")
            if not all(np.isfinite(value).all() for value in stats[feature].values()):
                raise DatasetError(
                    f"{dataset.root}: statistics of {feature} are not finite; run `vla-data verify` on it"
                )
        parts.append({feature: stats[feature] for feature in FEATURES})
    check_dimensions(datasets)
    joined = aggregate(parts) if len(parts) > 1 else parts[0]
    return {
        feature: {name: np.asarray(value, np.float32) for name, value in joined[feature].items()}
        for feature in FEATURES
    }


def check_dimensions(datasets: Sequence[Dataset]) -> None:
    """State and action have the same number of dimensions in every dataset."""
    for feature in FEATURES:
        sizes = {
            str(dataset.root): dataset.features[feature].shape for dataset in datasets if feature in dataset.features
        }
        if len(set(sizes.values())) > 1:
            listed = ", ".join(f"{root}: {list(shape)}" for root, shape in sizes.items())
            raise DatasetError(f"{feature} has different shapes ({listed}); train datasets of one robot together")


def names_or_numbers(dataset: Dataset, key: str = ACTION) -> tuple[str, ...]:
    """The names of a feature's values as the dataset gives them, else their places."""
    feature = dataset.features[key]
    return joint_names(feature) or tuple(map(str, range(feature.shape[0])))


def check_spread(datasets: Sequence[Dataset], settings: ProcessorSettings, own: bool) -> None:
    """DatasetError names a joint whose statistics cannot be those of its values: no value of n lies √n standard
    deviations from their mean. own: they are said to be of these datasets; others may be far off, within reason."""
    for feature, by in ((STATE, settings.state), (ACTION, settings.action_target)):
        if by.mode == "IDENTITY" or (feature == ACTION and settings.relative is not None):
            continue
        frames = sum(len(dataset) for dataset in datasets)
        limit = max(10.0, 2 * frames**0.5) if own and by.mode == "MEAN_STD" else FAR
        spread = by.high + by.eps if by.mode == "MEAN_STD" else np.maximum(by.high - by.low, by.eps)
        for dataset in datasets:
            far = (np.abs(dataset.column(feature) - by.low) / spread).max(axis=0)
            if far.max() > limit:
                joint = int(far.argmax())
                raise DatasetError(
                    f"{dataset.root}: {feature} {names_or_numbers(dataset, feature)[joint]} has a spread of "
                    f"{spread[joint]:.2g} in the statistics, too small for its values (one lies {far[joint]:.2g} of it "
                    f"away, at most {limit:.2g} is possible); write them anew with `vla-data stats {dataset.root} "
                    "--write`"
                )


def with_statistics(settings: ProcessorSettings, statistics: Statistics) -> ProcessorSettings:
    """`settings` that normalise with `statistics`, each feature in the mode it had.

    CheckpointError when a mode needs a statistic that the dataset does not keep (quantiles in older ones).
    """
    kept: dict[str, Any] = {**settings.statistics, **statistics}
    step = NormalizerStep(settings.normalization_mapping, settings.eps, kept)
    state, action = (
        normalization(feature, kind, statistics[feature]["mean"].shape[0], step, Path("the dataset"))
        for feature, kind in ((STATE, "STATE"), (ACTION, "ACTION"))
    )
    # How pictures are normalised stays the policy's: their statistics in the data are not what it learnt to see by.
    pictures = {item.feature: settings.statistics.get(item.feature) for item in settings.pictures}
    kept |= {feature: values for feature, values in pictures.items() if values is not None}
    return replace(settings, state=state, action=action, action_target=action, statistics=kept)


def statistics_digest(statistics: Statistics) -> str:
    """sha256 over names and values: two policies with the same digest normalise alike."""
    digest = hashlib.sha256()
    for feature in sorted(statistics):
        for name in sorted(statistics[feature]):
            digest.update(f"{feature}.{name}".encode())
            digest.update(np.ascontiguousarray(statistics[feature][name], dtype=np.float32).tobytes())
    return digest.hexdigest()
