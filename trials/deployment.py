# SPDX-License-Identifier: Apache-2.0
"""What the checks before a deployment share: a line of the checklist, the session, recorded or random observations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vla_edge.bundle import Bundle
from vla_edge.lerobot_data.observations import STATE, cameras_in, observation_of
from vla_edge.robot.arm_description import ArmDescription
from vla_edge.runtime.inference.session import InferenceRequest, InferenceResult, PolicySession

if TYPE_CHECKING:
    from vla_edge.lerobot_data.reader import Dataset

COUNT = 6
PASSED, FAILED, NOT_RUN = "passed", "failed", "not run"


@dataclass(frozen=True, slots=True)
class Item:
    """One line of the checklist; `fix` is empty unless it failed or was not run."""

    name: str
    state: str
    found: str
    fix: str = ""

    @classmethod
    def judged(cls, name: str, good: bool, found: str, fix: str) -> Item:
        return cls(name, PASSED, found) if good else cls(name, FAILED, found, fix)


@dataclass(frozen=True)
class Scene:
    """images: uint8 [height, width, 3] by the camera's source key; state float32 [state_dim] in joint units."""

    images: Mapping[str, NDArray[np.uint8]]
    state: NDArray[np.float32]
    task: str


@dataclass
class Deployment:
    """What the checks share. scenes: observations of the dataset (recorded), or random ones when there is none whose
    joints and cameras fit. differences: between bundle and dataset, None without one. tasks: the instruction that will
    be given, or the dataset's."""

    bundle: Bundle
    session: PolicySession
    scenes: list[Scene]
    recorded: bool
    differences: list[str] | None
    tasks: list[str]
    hz: float
    arm: ArmDescription

    def infer(self, scene: Scene) -> InferenceResult:
        """One inference with nothing reused."""
        self.session.reset()
        observation = observation_of(scene.images, scene.state, scene.task)
        policy = self.bundle.manifest.policy
        noise = np.random.default_rng(0).standard_normal((policy.chunk_size, policy.max_action_dim), np.float32)
        result = self.session.infer(InferenceRequest(observation, 0, noise=noise))
        assert result is not None
        return result


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
