"""Temporal ensembling: each action is the weighted mean of what all chunks so far planned for its moment.

Learning Fine-Grained Bimanual Manipulation (Zhao et al., 2023), algorithm 2: the i-th oldest plan counts exp(−m·i), so
with LeRobot's m = 0.01 the oldest counts most. Kept as a running mean, in float64, without torch.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class TemporalEnsemble:
    """Running weighted means over overlapping chunks. One `update` a control step; not for use from two threads.

    coefficient: m above, LeRobot's `temporal_ensemble_coeff`. chunk_size: actions a chunk.
    """

    def __init__(self, coefficient: float, chunk_size: int) -> None:
        self._weights = np.exp(-coefficient * np.arange(chunk_size))
        self._sums = np.cumsum(self._weights)
        self.reset()

    def reset(self) -> None:
        """Forget every chunk; the next one starts an episode."""
        self._means: NDArray[np.float64] | None = None
        self._counts = np.zeros(0, np.int64)

    def update(self, chunk: NDArray[np.floating]) -> NDArray[np.float64]:
        """The action for now, [A], after `chunk` [chunk_size, A], whose row 0 is planned for now."""
        if self._means is None:
            means, counts = chunk.astype(np.float64), np.ones(len(chunk), np.int64)
        else:
            old, counts = self._sums[self._counts - 1], self._counts
            kept = self._means * old[:, None] + chunk[:-1] * self._weights[counts][:, None]
            means = np.concatenate([kept / self._sums[counts][:, None], chunk[-1:]])
            counts = np.append(counts + 1, 1)
        self._means, self._counts = means[1:], counts[1:]
        return means[0]
