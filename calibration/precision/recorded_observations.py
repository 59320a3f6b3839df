# SPDX-License-Identifier: Apache-2.0
"""Observations that a policy is measured on, from the frames of a dataset: some for ranges, others held out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vla_edge.bundle import Bundle
from vla_edge.calibration.precision.synthetic import Measured, measured
from vla_edge.errors import DatasetError
from vla_edge.lerobot_data.observations import cameras_in, observation_of_sample
from vla_edge.lerobot_data.tolerance import TOLERANCE_S

if TYPE_CHECKING:
    from vla_edge.lerobot_data.reader import Dataset


@dataclass(frozen=True)
class Split:
    """Observations for ranges and, from other episodes or frames, for the action error."""

    ranges: Measured
    held_out: Measured


def from_dataset(
    bundle: Bundle, path: Path, renamed: Mapping[str, str], count: int, held_out: int, tolerance_s: float = TOLERANCE_S
) -> Split:
    """Frames spread over the dataset; the last fifth of its episodes (of its frames, when it has one episode) is held
    out. renamed: policy camera → dataset camera where they differ. DatasetError: no camera of the policy, or too few
    frames."""
    from vla_edge.lerobot_data.reader import open_dataset  # needs PyAV, which an export without a dataset does without

    with open_dataset(path, tolerance_s=tolerance_s) as dataset:
        cameras = cameras_in(dataset, bundle.manifest.cameras, renamed, all_of_them=False)
        border = _border(dataset)
        if border < 1 or len(dataset) - border < 1:
            raise DatasetError(f"{path}: {len(dataset)} frames are too few to hold some out; record more")
        first = _spread(0, border, count)
        last = _spread(border, len(dataset), held_out)
        return Split(
            measured(
                bundle,
                f"{path.name}, {len(first)} frames of 0 to {border - 1}",
                [observation_of_sample(dataset.frame(index, cameras.values()), cameras) for index in first],
            ),
            measured(
                bundle,
                f"{path.name}, {len(last)} frames of {border} to {len(dataset) - 1}",
                [observation_of_sample(dataset.frame(index, cameras.values()), cameras) for index in last],
            ),
        )


def _border(dataset: Dataset) -> int:
    """First frame that is held out."""
    if len(dataset.episodes) > 1:
        return dataset.episodes[-max(1, len(dataset.episodes) // 5)].from_index
    return len(dataset) * 4 // 5


def _spread(start: int, end: int, count: int) -> list[int]:
    return sorted({int(index) for index in np.linspace(start, end - 1, min(count, end - start))})
