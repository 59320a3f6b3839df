# SPDX-License-Identifier: Apache-2.0
"""Recorded frames as the observations of a policy, with the digest of what was looked at."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from vla_edge.contract import JointReading, Observation
from vla_edge.lerobot_data.observations import STATE, observation_of_sample
from vla_edge.lerobot_data.reader import Dataset


class Recorded:
    """A dataset seen through the policy's eyes. cameras: the policy's camera -> the dataset's key. `digest` is the
    sha256 of everything that was looked at so far, in that order."""

    def __init__(self, dataset: Dataset, cameras: Mapping[str, str]) -> None:
        self.dataset, self.cameras = dataset, cameras
        self._digest = hashlib.sha256()

    @property
    def digest(self) -> str:
        return self._digest.hexdigest()

    def observation(self, index: int) -> Observation:
        """Frame `index` of the whole set; its times are those of the recording, ns since the episode's start."""
        sample = self.dataset.frame(index, self.cameras.values())
        observation = observation_of_sample(sample, self.cameras)
        self._digest.update(f"{index} {sample.task}".encode() + observation.joints.positions.tobytes())
        for name in sorted(observation.frames):
            self._digest.update(observation.frames[name].image.tobytes())
        return observation

    def joints(self, index: int) -> JointReading:
        """The joints of frame `index`; decodes no picture."""
        positions = np.asarray(self.dataset.column(STATE)[index], np.float32)
        return JointReading(index, int(float(self.dataset.column("timestamp")[index]) * 1e9), positions)
