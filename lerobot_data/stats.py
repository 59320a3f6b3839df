"""Statistics as LeRobot keeps them: per episode, then put together weighted by count.

min, max, mean and std over frames for numbers; per colour channel over pixels
and sampled frames for cameras, scaled to 0..1 with shape [3, 1, 1]. Sampling
rule (LeRobot `compute_stats.py`): every frame below 100, then n^0.75 frames
and at least 100, at most 10 000, evenly spaced; pictures of 300 pixels or more are
thinned by a whole stride to about 150. std is the population's (ddof 0).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from vla_edge.errors import DatasetError

Stats = dict[str, dict[str, NDArray]]
"""feature → statistic (`min` `max` `mean` `std` `count` …) → array of one or more dimensions."""

_LEAST_SAMPLES = 100
_MOST_SAMPLES = 10_000


def sampled_frames(length: int) -> list[int]:
    """Frame numbers of an episode that enter the image statistics; length ≥ 1."""
    least = min(_LEAST_SAMPLES, length)
    count = max(least, min(int(length**0.75), _MOST_SAMPLES))
    return np.round(np.linspace(0, length - 1, count)).astype(int).tolist()


def number_stats(values: NDArray) -> dict[str, NDArray]:
    """values: [frames, ...] numbers. Statistics over frames, at least one-dimensional."""
    keep = values.ndim == 1
    wide = values.astype(np.float64)
    plain = wide if values.dtype.kind == "f" else values
    return {
        "min": plain.min(axis=0, keepdims=keep),
        "max": plain.max(axis=0, keepdims=keep),
        "mean": wide.mean(axis=0, keepdims=keep),
        "std": wide.std(axis=0, keepdims=keep),
        "count": np.array([len(values)]),
    }


class ImageMoments:
    """Exact moments of each frame of an episode, so that sampling can wait for its length.

    Holds 4·channels whole numbers per frame, never a picture.
    """

    def __init__(self) -> None:
        self._rows: list[NDArray[np.int64]] = []
        self._pixels = 0

    def add(self, image: NDArray[np.uint8]) -> None:
        """image: uint8 [height, width, channels]."""
        flat = thinned(image).reshape(-1, image.shape[-1])
        self._pixels = len(flat)
        wide = flat.astype(np.int64)
        self._rows.append(np.stack([flat.min(axis=0), flat.max(axis=0), wide.sum(axis=0), (wide * wide).sum(axis=0)]))

    def __len__(self) -> int:
        return len(self._rows)

    def stats(self, frames: Sequence[int]) -> dict[str, NDArray]:
        """Statistics over the given frames, scaled to 0..1, each [channels, 1, 1]."""
        rows = np.stack([self._rows[i] for i in frames]).astype(np.int64)
        count = len(frames) * self._pixels
        sums = [int(value) for value in rows[:, 2].sum(axis=0)]
        squares = [int(value) for value in rows[:, 3].sum(axis=0)]
        mean = np.array([total / count for total in sums])
        # Whole numbers keep the difference exact: a flat channel has std 0, not a rounding residue.
        std = np.sqrt(np.array([(count * square - total * total) / count**2 for square, total in zip(squares, sums)]))
        scaled = {"min": rows[:, 0].min(axis=0), "max": rows[:, 1].max(axis=0), "mean": mean, "std": std}
        stats: dict[str, NDArray] = {name: (value / 255.0).reshape(-1, 1, 1) for name, value in scaled.items()}
        return stats | {"count": np.array([len(frames)])}


def thinned(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Every k-th pixel of a picture whose longer side is 300 or more; k = longer side // 150."""
    height, width = image.shape[:2]
    if max(height, width) < 300:
        return image
    stride = max(height, width) // 150
    return image[::stride, ::stride]


def aggregate(parts: Iterable[Stats]) -> Stats:
    """Statistics of several episodes put together (means weighted by count, parallel variance).

    Raises DatasetError when an episode's entry of a feature lacks one of the five or has another shape.
    """
    gathered: dict[str, list[dict[str, NDArray]]] = {}
    for stats in parts:
        for key, entry in stats.items():
            gathered.setdefault(key, []).append(entry)
    return {key: _merged(key, entries) for key, entries in gathered.items()}


def _merged(key: str, entries: list[dict[str, NDArray]]) -> dict[str, NDArray]:
    for name in ("min", "max", "mean", "std", "count"):
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
    }
