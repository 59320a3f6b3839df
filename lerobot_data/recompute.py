# SPDX-License-Identifier: Apache-2.0
"""Statistics of a dataset computed anew from its numbers and pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from vla_edge.errors import DatasetError
from vla_edge.lerobot_data.editing.meta_edit import edited_meta, write_statistics
from vla_edge.lerobot_data.layout import Info
from vla_edge.lerobot_data.meta import Episode
from vla_edge.lerobot_data.reader import Dataset, open_dataset
from vla_edge.lerobot_data.stats import NEEDED, QUANTILES, ImageMoments, Stats, aggregate, number_stats, sampled_frames
from vla_edge.lerobot_data.tolerance import TOLERANCE_S


def episode_stats(dataset: Dataset, episode: Episode, keys: Iterable[str]) -> Stats:
    """One episode: numbers over all frames, pictures over LeRobot's sample of them."""
    stats: Stats = {}
    for key in keys:
        feature = dataset.features[key]
        if feature.is_camera:
            moments = ImageMoments()
            for frame in sampled_frames(episode.length):
                moments.add(dataset.image(key, episode.from_index + frame))
            stats[key] = moments.stats(range(len(moments)))
        elif feature.dtype != "string":
            stats[key] = number_stats(dataset.column(key)[episode.from_index : episode.to_index])
    return stats


def picture_statistics(info: Info, stored: Iterable[Stats]) -> dict[str, set[str]]:
    """camera → the statistics that every episode with statistics of it has; all ten when none has any."""
    entries = list(stored)
    found = {}
    for key in info.camera_keys:
        names = [set(stats[key]) for stats in entries if set(NEEDED) <= set(stats.get(key, {}))]
        found[key] = set.intersection(*names) if names else {*NEEDED, *QUANTILES}
    return found


def completed(
    dataset: Dataset, stored: Mapping[int, Stats], episode: Episode, pictures: Mapping[str, set[str]]
) -> Stats:
    """The `stored` statistics of an episode, and those it lacks: quantiles of numbers, and all of a feature that has
    not the first five. pictures: which statistics a camera is to have; those that are there are not computed anew."""
    mine = stored.get(episode.index, {})
    without = {key for key in dataset.camera_keys if set(NEEDED) <= set(mine.get(key, {}))}
    computed = episode_stats(dataset, episode, [key for key in dataset.features if key not in without])
    whole = {key for key, entry in mine.items() if set(NEEDED) <= set(entry) or key not in computed}
    stats = {key: mine[key] for key in mine if key in whole}
    for key, entry in computed.items():
        kept = mine[key] if key in whole else {}
        fits = {name: value for name, value in entry.items() if not kept or value.shape == kept["mean"].shape}
        stats[key] = fits | kept
    for key in set(dataset.camera_keys) & set(stats):
        stats[key] = {name: value for name, value in stats[key].items() if name in pictures[key]}
    return stats


def recompute_stats(
    root: Path,
    progress: Callable[[int, int], None] | None = None,
    write: bool = False,
    tolerance_s: float = TOLERANCE_S,
) -> tuple[Stats, Stats]:
    """Returns (computed, stored) statistics of the whole set; with `write` the computed ones replace the stored.

    progress: called with (episodes done, episodes in all).
    """
    with open_dataset(root, tolerance_s=tolerance_s) as dataset:
        parts: dict[int, Stats] = {}
        for episode in dataset.episodes:
            parts[episode.index] = episode_stats(dataset, episode, dataset.features)
            if progress is not None:
                progress(episode.index + 1, len(dataset.episodes))
        total, stored = aggregate(parts.values()), _stored(dataset, write)
        if write:
            with edited_meta(root) as copy:
                write_statistics(copy, dataset.info, parts, total)
    return total, stored


def _stored(dataset: Dataset, replaced: bool) -> Stats:
    """The stored statistics; none at all when they are missing or damaged and about to be replaced."""
    try:
        return dataset.stats
    except DatasetError as error:
        if replaced:
            return {}
        raise DatasetError(f"{error}; or write new statistics with `vla-data stats --write`") from None


def largest_difference(key: str, computed: Stats, stored: Stats) -> float:
    """Largest |computed − stored| of a feature's min, max, mean and std, relative to its range; inf when absent."""
    if key not in stored:
        return float("inf")
    mine, theirs = computed[key], stored[key]
    spread = max(float(np.max(mine["max"].astype(float) - mine["min"])), 1e-12)
    return max(
        float(np.abs(mine[name].astype(float) - theirs[name]).max()) / spread
        if name in theirs and theirs[name].shape == mine[name].shape
        else float("inf")
        for name in ("min", "max", "mean", "std")
    )
