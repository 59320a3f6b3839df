# SPDX-License-Identifier: Apache-2.0
"""The ten statistics LeRobot ≥ 0.5 keeps: per episode, then put together weighted by count.

min, max, mean, std and the quantiles q01 … q99 over frames for numbers; per
colour channel over pixels and sampled frames for cameras, scaled to 0..1 with
shape [3, 1, 1]. Sampling rule (LeRobot `compute_stats.py`): every frame below
100, then n^0.75 frames and at least 100, at most 10 000, evenly spaced; pictures
of 300 pixels or more are thinned by a whole stride to about 150. std is the
population's (ddof 0). A quantile is the smallest value with that share of the
values at or below it; LeRobot takes it from a histogram of 5000 bins and may be
off by one bin. Quantiles of several episodes are averaged by count, as
LeRobot 0.4.4 to 0.6.1 do (0.6.2 takes outer bounds instead).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from vla_edge.errors import DatasetError

Stats = dict[str, dict[str, NDArray]]
"""feature → statistic (`min` `max` `mean` `std` `count` …) → array of one or more dimensions."""

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
NEEDED = ("min", "max", "mean", "std", "count")
"""What every feature must have; older data have no quantiles."""

_LEAST_SAMPLES = 100
_MOST_SAMPLES = 10_000


def sampled_frames(length: int) -> list[int]:
    """Frame numbers of an episode that enter the image statistics; length ≥ 1."""
    least = min(_LEAST_SAMPLES, length)
    count = max(least, min(int(length**0.75), _MOST_SAMPLES))
    return np.round(np.linspace(0, length - 1, count)).astype(int).tolist()


def number_stats(values: NDArray, per_value: bool = False) -> dict[str, NDArray]:
    """values: [frames, ...] numbers. Statistics at least one-dimensional, over frames and, as LeRobot ≥ 0.4.3 has them,
    over all axes but the last; per_value: over frames only, as before."""
    frames = len(values)
    if values.ndim > 2 and not per_value:
        values = values.reshape(-1, values.shape[-1])
    keep = values.ndim == 1
    wide = values.astype(np.float64)
    from_first = wide - wide[0]  # a joint that rests has std 0, not a rounding residue
    plain = wide if values.dtype.kind == "f" else values
    ordered = np.sort(wide, axis=0)
    return {
        "min": plain.min(axis=0, keepdims=keep),
        "max": plain.max(axis=0, keepdims=keep),
        "mean": wide[0] + from_first.mean(axis=0, keepdims=keep),
        "std": from_first.std(axis=0, keepdims=keep),
        "count": np.array([frames]),
        **{name: np.atleast_1d(ordered[_rank(share, len(values))]) for name, share in QUANTILES.items()},
    }


class ImageMoments:
    """Exact distribution of each frame of an episode, so that sampling can wait for its length.

    Holds 256·channels counts per frame (3 kB for colour), never a picture.
    """

    def __init__(self) -> None:
        self._rows: list[NDArray[np.uint32]] = []

    def add(self, image: NDArray[np.uint8]) -> None:
        """image: uint8 [height, width, channels]."""
        flat = thinned(image).reshape(-1, image.shape[-1])
        self._rows.append(np.stack([np.bincount(channel, minlength=256) for channel in flat.T]).astype(np.uint32))

    def __len__(self) -> int:
        return len(self._rows)

    def stats(self, frames: Sequence[int]) -> dict[str, NDArray]:
        """Statistics over the given frames, scaled to 0..1, each [channels, 1, 1]."""
        counts: NDArray[np.int64] = np.stack([self._rows[i] for i in frames]).sum(axis=0, dtype=np.int64)
        levels, total = np.arange(256), int(counts[0].sum())
        sums, squares = (counts * levels).sum(axis=1), (counts * levels**2).sum(axis=1)
        # Whole numbers keep the difference exact: a flat channel has std 0, not a rounding residue.
        variance = [(total * int(square) - int(one) ** 2) / total**2 for square, one in zip(squares, sums)]
        behind = counts.cumsum(axis=1)
        scaled = {
            "min": (counts > 0).argmax(axis=1),
            "max": 255 - (counts[:, ::-1] > 0).argmax(axis=1),
            "mean": sums / total,
            "std": np.sqrt(variance),
            **{name: (behind > _rank(share, total)).argmax(axis=1) for name, share in QUANTILES.items()},
        }
        stats: dict[str, NDArray] = {name: (value / 255.0).reshape(-1, 1, 1) for name, value in scaled.items()}
        return {**{name: stats.pop(name) for name in NEEDED[:4]}, "count": np.array([len(frames)]), **stats}


def _rank(share: float, count: int) -> int:
    """Place, from 0, of the smallest of `count` ordered values with this share of them at or below it."""
    return max(0, math.ceil(round(share * count, 6)) - 1)


def thinned(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Every k-th pixel of a picture whose longer side is 300 or more; k = longer side // 150."""
    height, width = image.shape[:2]
    if max(height, width) < 300:
        return image
    stride = max(height, width) // 150
    return image[::stride, ::stride]


def aggregate(parts: Iterable[Stats]) -> Stats:
    """Statistics of several episodes put together: means and quantiles weighted by count, parallel variance.

    Raises DatasetError when an episode's entry of a feature lacks one of the five or has another shape.
    """
    gathered: dict[str, list[dict[str, NDArray]]] = {}
    for stats in parts:
        for key, entry in stats.items():
            gathered.setdefault(key, []).append(entry)
    return {key: _merged(key, entries) for key, entries in gathered.items()}


def _merged(key: str, entries: list[dict[str, NDArray]]) -> dict[str, NDArray]:
    for name in NEEDED:
        shapes = {entry[name].shape if name in entry else None for entry in entries}
        if None in shapes or len(shapes) != 1:
            raise DatasetError(
                f"statistics of {key}: {name} is missing or of another shape in some episode; "
                "run `vla-data stats --write`"
            )
    means = np.stack([entry["mean"] for entry in entries])
    counts = np.stack([entry["count"] for entry in entries])
    total = counts.sum(axis=0)
    weights = counts.reshape(counts.shape + (1,) * (means.ndim - counts.ndim))
    mean = (means * weights).sum(axis=0) / total
    variances = np.stack([entry["std"] for entry in entries]) ** 2
    variance = ((variances + (means - mean) ** 2) * weights).sum(axis=0) / total
    return {
        "min": np.stack([entry["min"] for entry in entries]).min(axis=0),
        "max": np.stack([entry["max"] for entry in entries]).max(axis=0),
        "mean": mean,
        "std": np.sqrt(variance),
        "count": total,
        **{
            name: (np.stack([entry[name] for entry in entries]) * weights).sum(axis=0) / total
            for name in QUANTILES
            if all(name in entry for entry in entries)
        },
    }
