"""Observations for the deployment checklist: recorded ones, or random ones of the right shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vla_edge.bundle import Bundle
from vla_edge.errors import DatasetError
from vla_edge.lerobot_data.reader import open_dataset
from vla_edge.runtime.inference.units import STATE

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


def dataset_scenes(bundle: Bundle, path: Path, task: str | None) -> list[Scene]:
    """Frames spread evenly over the data set. DatasetError when it lacks a camera or has another picture size."""
    cameras = {camera.source: camera for camera in bundle.manifest.cameras}
    with open_dataset(path) as data:
        missing = [key for key in cameras if key not in data.camera_keys]
        if missing:
            raise DatasetError(
                f"{path}: no camera {missing[0]}, which the bundle reads; it has {', '.join(data.camera_keys)}"
            )
        scenes = []
        for index in np.unique(np.linspace(0, len(data) - 1, COUNT).round().astype(int)):
            frame = data.frame(int(index), cameras)
            scenes.append(Scene(frame.images, np.asarray(frame.values[STATE], np.float32), task or frame.task))
        return scenes
