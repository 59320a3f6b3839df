# SPDX-License-Identifier: Apache-2.0
"""Recorded noise: a dataset of the right shape whose content means nothing, for tests and benches of training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vla_edge.camera_names import PREFIX
from vla_edge.lerobot_data.layout import Feature
from vla_edge.lerobot_data.writer import DatasetWriter

JOINTS = 6


def write_random_data(
    folder: Path, cameras: Sequence[str], size: tuple[int, int], episodes: int, frames: int, kind: str, block: int = 1
) -> Path:
    """A v3.0 dataset at 30 Hz of six slow random joints, each action the next state, and pictures of `size` (height,
    width) in squares of `block` equal pixels; kind: video or image (PNG)."""
    joints = Feature("float32", (JOINTS,), [f"joint_{number}" for number in range(JOINTS)])
    pictures = {f"{PREFIX}{name}": Feature(kind, (*size, 3), ["height", "width", "channels"]) for name in cameras}
    random = np.random.default_rng(0)
    with DatasetWriter(folder, 30, {"observation.state": joints, "action": joints, **pictures}) as writer:
        for _ in range(episodes):
            way = np.cumsum(random.normal(size=(frames + 1, JOINTS)), axis=0).astype(np.float32)
            for now, after in zip(way, way[1:]):
                drawn = random.integers(0, 256, (len(pictures), size[0] // block, size[1] // block, 3), np.uint8)
                seen = dict(zip(pictures, drawn.repeat(block, 1).repeat(block, 2)))
                writer.add_frame({"observation.state": now, "action": after, **seen}, "pick up the cube")
            writer.save_episode()
    return folder
