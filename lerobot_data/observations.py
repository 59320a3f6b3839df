# SPDX-License-Identifier: Apache-2.0
"""One frame of a dataset → the Observation a policy starts from, and which of the dataset's cameras are the
policy's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vla_edge.bundle import CameraSpec
from vla_edge.camera_names import nearest, short_name
from vla_edge.contract import Frame, JointReading, Observation
from vla_edge.errors import ConfigError, DatasetError

if TYPE_CHECKING:
    from vla_edge.lerobot_data.reader import Dataset, Sample

STATE = "observation.state"


def observation_of(
    images: Mapping[str, NDArray[np.uint8]], state: NDArray, task: str, index: int = 0, time_s: float = 0.0
) -> Observation:
    """images: the policy's camera → uint8 [height, width, 3] RGB; state [joints] in joint units; time_s: since the
    episode's start, the times of the observation in ns."""
    time_ns = int(time_s * 1e9)
    frames = {name: Frame(name, image, time_ns, index) for name, image in images.items()}
    return Observation(index, frames, JointReading(index, time_ns, np.asarray(state, np.float32)), task)


def observation_of_sample(sample: Sample, cameras: Mapping[str, str]) -> Observation:
    """cameras: the policy's camera → the dataset's."""
    images = {name: sample.images[key] for name, key in cameras.items()}
    return observation_of(images, sample.values[STATE], sample.task, sample.index, sample.timestamp)


def cameras_in(
    dataset: Dataset, cameras: Sequence[CameraSpec], given: Mapping[str, str], all_of_them: bool = True
) -> dict[str, str]:
    """The policy's camera (its name on the robot) → the dataset's key: as `given`, else as at the bundle's export
    (`in_data`), else the same name.

    all_of_them: the dataset has every camera whose pictures the training data had (`seen`); others, and with False all
    that the dataset lacks, are left out as long as there is one. ConfigError: `given` names a camera neither side has.
    DatasetError: a camera that the dataset lacks.
    """
    keys, wanted = dataset.camera_keys, dict(given)
    found = {}
    for camera in cameras:
        asked = [wanted.pop(name) for name in (camera.source, camera.name) if name in wanted]
        if asked and asked[0] not in keys:
            raise ConfigError(
                f"--camera: {dataset.root} has no camera {short_name(asked[0])}; {nearest(asked[0], keys)}"
            )
        key = next((name for name in (*asked, camera.in_data, camera.source, camera.name) if name in keys), None)
        if key is not None:
            found[camera.source] = key
        elif all_of_them and camera.seen:
            raise DatasetError(
                f"{dataset.root}: no camera {short_name(camera.source)} that the policy sees; "
                f"{nearest(camera.source, keys)}; map it with --camera {short_name(camera.source)}=NAME"
            )
    for name, key in found.items():
        first = next(other for other in found if found[other] == key)
        if first != name:
            raise ConfigError(
                f"--camera gives {short_name(key)} to both {short_name(first)} and {short_name(name)}; give each its "
                "own, or leave one out"
            )
    if wanted:
        name = next(iter(wanted))
        like = nearest(name, [camera.source for camera in cameras])
        raise ConfigError(f"--camera: the policy has no camera {short_name(name)}; {like}")
    if not found:
        raise DatasetError(
            f"{dataset.root}: its cameras {', '.join(map(short_name, keys)) or '(none)'} are none of the policy's "
            f"{', '.join(short_name(camera.source) for camera in cameras)}; map them with --camera NAME=DATASET_NAME"
        )
    return found
