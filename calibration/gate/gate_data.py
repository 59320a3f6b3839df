"""Recorded frames as the observations of a policy: which camera of the data set is which of the policy's."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from vla_edge.bundle import Bundle
from vla_edge.contract import Frame, JointReading, Observation
from vla_edge.errors import ConfigError, DatasetError
from vla_edge.lerobot_data.reader import Dataset
from vla_edge.runtime.inference.units import STATE

PREFIX = "observation.images."


class Recorded:
    """A data set seen through the policy's eyes. cameras: the policy's camera -> the data set's key. `digest` is the
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
        time_ns = int(sample.timestamp * 1e9)
        frames = {name: Frame(name, sample.images[key], time_ns, index) for name, key in self.cameras.items()}
        observation = Observation(index, frames, self.joints(index), sample.task)
        self._digest.update(f"{index} {sample.task}".encode() + observation.joints.positions.tobytes())
        for name in sorted(frames):
            self._digest.update(frames[name].image.tobytes())
        return observation

    def joints(self, index: int) -> JointReading:
        """The joints of frame `index`; decodes no picture."""
        positions = np.asarray(self.dataset.column(STATE)[index], np.float32)
        return JointReading(index, int(float(self.dataset.column("timestamp")[index]) * 1e9), positions)


def camera_keys(bundle: Bundle, dataset: Dataset, given: Sequence[str]) -> dict[str, str]:
    """The data set's key for each camera of the policy: as `given` (POLICY=DATA, short names allowed), else the same
    name. ConfigError: a name neither side knows. DatasetError: a camera of the policy that the data set lacks."""
    told = {}
    for text in given:
        name, equals, key = text.partition("=")
        if not equals or not name or not key:
            raise ConfigError(
                f"--camera {text}: give POLICY=DATA, a camera of the policy and the data set's key for it"
            )
        told[_long(name)] = _long(key)
    found = {}
    for camera in bundle.manifest.cameras:
        wanted = [told.pop(name) for name in (camera.name, camera.source) if name in told]
        keys = [key for key in (*wanted[:1], camera.source, camera.name) if key in dataset.camera_keys]
        if wanted and keys[:1] != wanted[:1]:
            raise ConfigError(
                f"--camera: {dataset.root} has no camera {wanted[0]}; it has {', '.join(dataset.camera_keys)}"
            )
        if not keys:
            raise DatasetError(
                f"{dataset.root}: no camera {camera.source} that the policy sees, it has "
                f"{', '.join(dataset.camera_keys)}; map it with --camera POLICY=DATA"
            )
        found[camera.name] = keys[0]
    if told:
        raise ConfigError(f"--camera: the policy has no camera {next(iter(told))}; it sees {', '.join(found)}")
    return found


def _long(name: str) -> str:
    return name if name.startswith(PREFIX) else PREFIX + name
