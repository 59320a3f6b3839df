# SPDX-License-Identifier: Apache-2.0
"""Are two datasets the same, whatever their versions? Exact per episode; pictures bit for bit at sampled times."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vla_edge.errors import DatasetError
from vla_edge.lerobot_data.layout import V21_STATS_FILE
from vla_edge.lerobot_data.meta import read_episode_stats
from vla_edge.lerobot_data.reader import Dataset, open_dataset
from vla_edge.lerobot_data.stats import NEEDED, Stats
from vla_edge.lerobot_data.tolerance import TOLERANCE_S

_SAMPLES = 3
_TOTAL_TOLERANCE = 1e-9
"""Statistics of the whole set are sums over episodes; another order of adding moves the last digits only."""


def compare_datasets(
    a: Path, b: Path, samples: int = _SAMPLES, completed: bool = False, tolerance_s: float = TOLERANCE_S
) -> list[str]:
    """Differences between `a` and `b` in words, empty when they are equal.

    Compared: fps, features (type, shape, names), every number and text of every
    episode, task texts, statistics, and `samples` pictures per episode and camera
    (the first, the last and evenly between). Task numbers and file layout may differ.
    completed: `b` may have statistics that `a` lacks.
    """
    if samples < 1:
        raise DatasetError(f"samples is {samples}; at least one picture per episode and camera is compared")
    with open_dataset(a, tolerance_s=tolerance_s) as first, open_dataset(b, tolerance_s=tolerance_s) as second:
        differences = differing_heads(first, second)
        if len(first.episodes) != len(second.episodes):
            differences.append(f"{len(first.episodes)} and {len(second.episodes)} episodes")
        if differences:
            return differences
        for episode in range(len(first.episodes)):
            differences += _episode(first, second, episode, samples)
        return differences + (_kept(first, second) if completed else _statistics(first, second))


def differing_heads(a: Dataset, b: Dataset) -> list[str]:
    """What keeps two datasets from holding the same kind of frames: rate, robot, features (type, shape, names)."""
    differences = []
    if a.fps != b.fps:
        differences.append(f"fps {a.fps} and {b.fps}")
    if a.info.robot_type != b.info.robot_type:
        differences.append(f"robot_type {a.info.robot_type} and {b.info.robot_type}")
    if set(a.features) != set(b.features):
        differences.append(f"features {sorted(set(a.features) ^ set(b.features))} stand in one only")
    for key in sorted(set(a.features) & set(b.features)):
        x, y = a.features[key], b.features[key]
        if (x.dtype, x.shape, _plain(x.names)) != (y.dtype, y.shape, _plain(y.names)):
            differences.append(
                f"feature {key}: {x.dtype} {list(x.shape)} {x.names} and {y.dtype} {list(y.shape)} {y.names}"
            )
    return differences


def _plain(names: object) -> object:
    return list(names) if isinstance(names, (list, tuple)) else names


def _episode(a: Dataset, b: Dataset, number: int, samples: int) -> list[str]:
    x, y = a.episodes[number], b.episodes[number]
    if x.length != y.length:
        return [f"episode {number}: {x.length} and {y.length} frames"]
    differences = []
    if x.tasks != y.tasks:
        differences.append(f"episode {number}: tasks {list(x.tasks)} and {list(y.tasks)}")
    for key in (*a.info.value_keys, "timestamp", "frame_index", "index"):
        left, right = a.column(key)[x.from_index : x.to_index], b.column(key)[y.from_index : y.to_index]
        row = _first_difference(left, right)
        if row is not None:
            differences.append(f"episode {number}: {key} differs at frame {row}: {left[row]} and {right[row]}")
    for row in range(x.length):
        texts = a.task_of(x.from_index + row), b.task_of(y.from_index + row)
        if texts[0] != texts[1]:
            differences.append(f"episode {number}: task differs at frame {row}: {texts[0]!r} and {texts[1]!r}")
            break
    for row in sorted({int(r) for r in np.linspace(0, x.length - 1, samples).round()} | {0, x.length - 1}):
        for camera in a.camera_keys:
            if not np.array_equal(a.image(camera, x.from_index + row), b.image(camera, y.from_index + row)):
                differences.append(f"episode {number}: {camera} differs at frame {row}")
    return differences


def _first_difference(a: NDArray, b: NDArray) -> int | None:
    """First row whose bits differ; equal NaNs are equal."""
    if a.dtype == object:
        same = a == b
    else:
        same = (a == b) | ((a != a) & (b != b))
    rows = np.flatnonzero(~same.reshape(len(a), -1).all(axis=1))
    return int(rows[0]) if rows.size else None


def _statistics(a: Dataset, b: Dataset) -> list[str]:
    x, y = read_episode_stats(a.root, a.info), read_episode_stats(b.root, b.info)
    differences = []
    for number in sorted(set(x) | set(y)):
        differences += _stats_pair(f"episode {number}", x.get(number, {}), y.get(number, {}), 0.0)
    return differences + _stats_pair("dataset", a.stats, b.stats, _TOTAL_TOLERANCE)


def _kept(a: Dataset, b: Dataset) -> list[str]:
    """Whether `b` holds every statistic of an episode that `a` has; the whole set's follow from them."""
    if not (a.root / V21_STATS_FILE).is_file():
        return []
    x, y = read_episode_stats(a.root, a.info), read_episode_stats(b.root, b.info)
    differences = []
    for number, stats in x.items():
        shared = {key: entry for key, entry in stats.items() if set(NEEDED) <= set(entry)}
        theirs = {key: entry for key, entry in y.get(number, {}).items() if key in shared}
        differences += _stats_pair(f"episode {number}", shared, theirs, 0.0)
    return differences


def _stats_pair(where: str, a: Stats, b: Stats, tolerance: float) -> list[str]:
    if set(a) != set(b):
        return [f"{where}: statistics of {sorted(set(a) ^ set(b))} stand in one only"]
    differences = []
    for key in a:
        one_only = set(a[key]) ^ set(b[key])
        if one_only & set(NEEDED):  # older data have no quantiles, converting adds them
            differences.append(f"{where}: statistics {sorted(one_only)} of {key} stand in one only")
            continue
        for name in sorted(set(a[key]) & set(b[key])):
            x, y = a[key][name], b[key][name]
            if x.shape != y.shape or not np.allclose(x, y, rtol=tolerance, atol=tolerance, equal_nan=True):
                differences.append(f"{where}: {name} of {key} is {x.tolist()} and {y.tolist()}")
    return differences
