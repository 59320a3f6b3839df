# SPDX-License-Identifier: Apache-2.0
"""Temporal ensembling: each action is the weighted mean of what all chunks so far planned for its moment.

Learning Fine-Grained Bimanual Manipulation (Zhao et al., 2023), algorithm 2: the i-th oldest plan counts exp(−m·i), so
with LeRobot's m = 0.01 the oldest counts most. Kept as a running mean, in float64, without torch.
"""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Number = TypeVar("Number", bound=np.floating)

ON_A_ROW = 1e-3
"""Rows: so near to one it is that one. Periods are whole nanoseconds, so rates that divide meet within this."""


def rows_from(rows: NDArray[Number], place: float) -> NDArray[Number]:
    """Rows [n, A] at place, place + 1, …: where that is between two of them, what lies on the line between."""
    first = math.floor(place + ON_A_ROW)
    share = place - first
    if share < ON_A_ROW:
        return rows[first:]
    before, after = rows[first:-1], rows[first + 1 :]
    return before + rows.dtype.type(share) * (after - before)


class TemporalEnsemble:
    """Running weighted means over overlapping chunks. Not for use from two threads.

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

    def mean(self, chunk: NDArray[np.floating], later: float = 1) -> NDArray[np.float64]:
        """The means [n, A] that begin with the moment of row 0 of `chunk` [n, A], which begins `later` actions after
        the chunk before it (LeRobot plans at every action: 1; between two, what lies on the line between counts).
        ValueError: it does not begin later."""
        if later <= 0:
            raise ValueError(
                f"a chunk begins {later} actions after the one before; an ensemble's begin one after another"
            )
        means, counts = chunk.astype(np.float64), np.ones(len(chunk), np.int64)
        if self._means is not None and (left := len(rows := rows_from(self._means, later))) > 0:
            kept = self._counts[-left:]
            before = rows * self._sums[kept - 1][:, None]
            means[:left] = (before + chunk[:left] * self._weights[kept][:, None]) / self._sums[kept][:, None]
            counts[:left] += kept
        self._means, self._counts = means, counts
        return means
