# SPDX-License-Identifier: Apache-2.0
"""Observations for the deployment checklist: recorded ones, or random ones of the right shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vla_edge.bundle import Bundle
from vla_edge.lerobot_data.observations import STATE, cameras_in

if TYPE_CHECKING:
    from vla_edge.lerobot_data.reader import Dataset

COUNT = 6


@dataclass(frozen=True)
class Scene:
    """images: uint8 [height, width, 3] by the camera's source key; state float32 [state_dim] in joint units."""

    images: Mapping[str, NDArray[np.uint8]]
    state: NDArray[np.float32]
    task: str


def random_scenes(bundle: Bundle, task: str) -> list[Scene]:
    """Noise pictures and states within two standard units: enough for speed and arithmetic, not for outputs."""
    generator = np.random.default_rng(0)
    return [
        Scene(
            {
                c.source: generator.integers(0, 256, (c.height, c.width, 3), dtype=np.uint8)
                for c in bundle.manifest.cameras
            },
            generator.uniform(-2, 2, bundle.manifest.policy.state_dim).astype(np.float32),
            task,
        )
        for _ in range(COUNT)
    ]


def dataset_scenes(bundle: Bundle, data: Dataset, task: str | None) -> list[Scene]:
    """Frames spread evenly over a dataset of the bundle's robot."""
    cameras = cameras_in(data, bundle.manifest.cameras, {})
    scenes = []
    for index in np.unique(np.linspace(0, len(data) - 1, COUNT).round().astype(int)):
        frame = data.frame(int(index), cameras.values())
        images = {name: frame.images[key] for name, key in cameras.items()}
        scenes.append(Scene(images, np.asarray(frame.values[STATE], np.float32), task or frame.task))
    return scenes
