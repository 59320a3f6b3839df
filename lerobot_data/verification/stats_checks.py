# SPDX-License-Identifier: Apache-2.0
"""Checks of `vla-data verify` on the stored statistics; each returns its problems in words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vla_edge.errors import DatasetError
from vla_edge.lerobot_data import layout
from vla_edge.lerobot_data.columns import column_array
from vla_edge.lerobot_data.layout import Feature, Info
from vla_edge.lerobot_data.meta import read_table
from vla_edge.lerobot_data.stats import NEEDED, QUANTILES, Stats, number_stats
from vla_edge.lerobot_data.verification.opened import MOST_PROBLEMS, Opened


def statistics(opened: Opened) -> list[str]:
    """What a policy takes (cameras, observations, the action) has its statistics, of the right shape and order, and
    numbers agree with the data."""
    found = _problems(opened, inputs=True)
    return [*found, "`vla-data stats --write` computes them anew"] if found else []


def untidy_statistics(opened: Opened) -> list[str]:
    """The same for all other columns; LeRobot's own edit tools leave those stale or without any."""
    found = _problems(opened, inputs=False)
    return [*found, "`vla-data stats --write` mends all of these"] if found else []


def _problems(opened: Opened, inputs: bool) -> list[str]:
    info, stats, parts = opened.info, opened.stats, opened.episode_stats
    episodes, frames = opened.episodes, opened.frames
    assert info is not None and stats is not None and parts is not None
    assert episodes is not None and frames is not None
    keys = [key for key, feature in info.features.items() if _is_input(key, feature) == inputs]
    problems = [
        f"episode {episode.index} has no statistics"
        for episode in episodes
        if inputs and episode.index not in parts and info.version != layout.V20
    ]
    for where, entry in (("dataset", stats), *((f"episode {index}", part) for index, part in parts.items())):
        problems += _stats_shape(where, info, keys, entry)
        if len(problems) >= MOST_PROBLEMS:
            return problems[:MOST_PROBLEMS]
    if problems:
        return problems
    if not frames:
        return ["no data file to compare the statistics with"] if inputs else []
    for key in keys:
        if info.features[key].is_camera or info.features[key].dtype == "string":
            continue
        try:
            values = np.concatenate(
                [
                    column_array(path, key, info.features[key], read_table(path, [key])[key])
                    for path in (file.path for file in frames)
                ]
            )
        except DatasetError as error:
            problems.append(str(error))
            continue
        problems += _stats_against("dataset", key, stats[key], values)
        for episode in episodes:
            part = values[episode.from_index : episode.to_index]
            if len(part) == episode.length and episode.index in parts:
                problems += _stats_against(f"episode {episode.index}", key, parts[episode.index][key], part)
    return problems[:MOST_PROBLEMS]


def _is_input(key: str, feature: Feature) -> bool:
    return feature.is_camera or key == "action" or key.startswith("observation.")


def _stats_shape(where: str, info: Info, keys: Sequence[str], stats: Stats) -> list[str]:
    problems = []
    for key in keys:
        feature = info.features[key]
        if feature.dtype == "string":
            continue
        entry = stats.get(key, {})
        missing = [name for name in NEEDED if name not in entry]
        if missing:
            problems.append(f"{where}: {key} has no {' '.join(missing)}")
            continue
        shape = (feature.shape[2], 1, 1) if feature.is_camera else feature.shape[-1:]
        if entry["mean"].shape == feature.shape:
            shape = feature.shape  # of every value of a table, as LeRobot had them before 0.4.3
        wrong = [name for name in (*NEEDED[:4], *QUANTILES) if name in entry and entry[name].shape != shape]
        if wrong:
            problems.append(
                f"{where}: {wrong[0]} of {key} has shape {list(entry[wrong[0]].shape)}, {list(shape)} is expected"
            )
            continue
        slack = 1e-5 * (1 + np.abs(entry["mean"]))
        if (entry["mean"] < entry["min"] - slack).any() or (entry["mean"] > entry["max"] + slack).any():
            problems.append(f"{where}: mean of {key} lies outside min and max")
        rising = [entry["min"], *(entry[name] for name in QUANTILES if name in entry), entry["max"]]
        if any((high < low - slack).any() for low, high in zip(rising, rising[1:])):
            problems.append(f"{where}: quantiles of {key} do not rise from min to max")
        if (entry["std"] < 0).any() or (entry["count"] < 1).any():
            problems.append(f"{where}: {key} has a negative std or no count")
        if feature.is_camera and ((entry["min"] < 0).any() or (entry["max"] > 1).any()):
            problems.append(f"{where}: {key} is not scaled to 0..1")
    return problems


def _stats_against(where: str, key: str, entry: dict[str, NDArray], values: NDArray) -> list[str]:
    if not len(values):
        return [f"{where}: {key} has no values"]
    per_value = entry["mean"].shape == values.shape[1:]
    problems, computed = [], number_stats(values, per_value)
    for name in NEEDED:
        found = computed[name]
        # LeRobot sums in float32: its mean and std of long episodes are right to about 1e-5 of the values' size.
        slack = 1e-4 * (1e-3 + np.maximum(np.abs(computed["min"].astype(float)), np.abs(computed["max"].astype(float))))
        if not (np.abs(entry[name].astype(np.float64) - found) <= slack).all():
            problems.append(f"{where}: {name} of {key} is {entry[name].tolist()}, the data have {found.tolist()}")
    return problems


def statistics_finite(opened: Opened) -> list[str]:
    stats, parts = opened.stats, opened.episode_stats
    assert stats is not None and parts is not None
    problems = []
    for where, entry in (("dataset", stats), *((f"episode {index}", part) for index, part in parts.items())):
        for key, values in entry.items():
            problems += [
                f"{where}: {name} of {key} is not finite"
                for name, value in values.items()
                if not np.isfinite(value).all()
            ]
    return problems[:MOST_PROBLEMS]
