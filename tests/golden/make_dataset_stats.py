# SPDX-License-Identifier: Apache-2.0
"""Make dataset_stats.npz: statistics as LeRobot computes them. Run with a Python that has LeRobot (0.6.1 was used)."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np


def main(target: Path) -> None:
    from lerobot.datasets.compute_stats import get_feature_stats

    generator = np.random.default_rng(7)
    values = np.cumsum(generator.normal(size=(157, 4)), axis=0).astype(np.float32)
    values[:, 1] = generator.integers(0, 3, 157)  # few different values
    values[:, 2] = 5.25  # rests
    pictures = generator.integers(20, 200, (3, 20, 24, 3)).astype(np.uint8)
    pictures[..., 1] //= 4
    numbers = get_feature_stats(values, axis=0, keepdims=False)
    colours = get_feature_stats(pictures.transpose(0, 3, 1, 2), axis=(0, 2, 3), keepdims=True)
    scaled = {f"picture_{name}": value / 255 for name, value in colours.items() if name != "count"}
    np.savez_compressed(target, values=values, pictures=pictures, **numbers, **scaled)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
