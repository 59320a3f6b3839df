# SPDX-License-Identifier: Apache-2.0
"""What sequential training kept: the transfer matrix R[stage, task] and forgetting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Transfer:
    """`losses` float64 [stages, tasks]: validation loss of each task after each stage, lower is better.

    NaN where a task was not validated (it comes later, or its stage is not done).
    """

    stages: tuple[str, ...]
    tasks: tuple[str, ...]
    losses: NDArray[np.float64]

    def forgetting(self) -> dict[str, float]:
        """Per task: (loss after the last stage done − the task's own best) / the task's own best; 0 is nothing lost."""
        done = [row for row in self.losses if np.isfinite(row).any()]
        if not done:
            return {}
        best = np.nanmin(np.where(np.isfinite(done), done, np.inf), axis=0)
        return {
            task: float((done[-1][i] - best[i]) / best[i])
            for i, task in enumerate(self.tasks)
            if np.isfinite(done[-1][i]) and best[i] > 0
        }

    def mean_forgetting(self) -> float:
        """Mean over the tasks before the last one trained (stage i trains task i); 0 when there is none."""
        done = int(np.isfinite(self.losses).any(axis=1).sum())
        lost = self.forgetting()
        values = [lost[task] for task in self.tasks[: max(done - 1, 0)] if task in lost]
        return float(np.mean(values)) if values else 0.0

    def markdown(self) -> str:
        """R as a table, one row per stage, with a last row of forgetting."""
        lost = self.forgetting()
        lines = ["| after stage | " + " | ".join(self.tasks) + " |", "|---" * (len(self.tasks) + 1) + "|"]
        for stage, row in zip(self.stages, self.losses):
            lines.append(f"| {stage} | " + " | ".join(f"{v:.5f}" if np.isfinite(v) else "–" for v in row) + " |")
        lines.append("| forgetting | " + " | ".join(f"{lost[t]:+.1%}" if t in lost else "–" for t in self.tasks) + " |")
        return "\n".join(lines)

    def to_json(self) -> dict[str, object]:
        return {
            "stages": list(self.stages),
            "tasks": list(self.tasks),
            "losses": [[float(v) if np.isfinite(v) else None for v in row] for row in self.losses],
            "forgetting": self.forgetting(),
            "mean_forgetting": self.mean_forgetting(),
        }


def transfer_from_rows(stages: Sequence[str], tasks: Sequence[str], rows: Sequence[dict[str, float]]) -> Transfer:
    """Build R from one {task: loss} per finished stage."""
    losses = np.full((len(stages), len(tasks)), np.nan)
    for index, row in enumerate(rows):
        for task, loss in row.items():
            losses[index, tasks.index(task)] = loss
    return Transfer(tuple(stages), tuple(tasks), losses)
