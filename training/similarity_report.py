"""How well a similarity tells the same scene from a changed one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def auroc(same: NDArray[np.floating], changed: NDArray[np.floating]) -> float:
    """Probability that a pair of the same scene scores above a pair of changed scenes; ties count half. 0.5 is chance.

    Computed from ranks (Mann-Whitney U), float64. NaN where a class is empty.
    """
    if len(same) == 0 or len(changed) == 0:
        return float("nan")
    values = np.concatenate([same, changed]).astype(np.float64)
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks = (last - (counts - 1) / 2)[inverse]
    return float((ranks[: len(same)].sum() - len(same) * (len(same) + 1) / 2) / (len(same) * len(changed)))
