# SPDX-License-Identifier: Apache-2.0
"""A frame of a dataset as the policy's observation, and whose camera is whose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vla_edge.bundle import CameraSpec
from vla_edge.errors import ConfigError, DatasetError
from vla_edge.lerobot_data.layout import Feature
from vla_edge.lerobot_data.observations import cameras_in, observation_of_sample
from vla_edge.lerobot_data.reader import open_dataset
from vla_edge.lerobot_data.writer import DatasetWriter

FRONT, WRIST = "observation.images.front", "observation.images.wrist"
POLICY = (
    CameraSpec("observation.images.camera1", "observation.images.front", 8, 8),
    CameraSpec("observation.images.phone", "observation.images.phone", 8, 8),
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("data") / "set"
    picture = Feature("image", (8, 8, 3), ["height", "width", "channels"])
    vector = Feature("float32", (2,), ["pan", "lift"])
    features = {"observation.state": vector, "action": vector, FRONT: picture, WRIST: picture}
    with DatasetWriter(target, 10, features) as writer:
        for number in range(3):
            pictures = {key: np.full((8, 8, 3), number + shift, np.uint8) for key, shift in ((FRONT, 0), (WRIST, 100))}
            state = np.array([number, -number], np.float32)
            writer.add_frame({"observation.state": state, "action": state, **pictures}, "reach")
        writer.save_episode()
    return target


def test_a_frame_becomes_the_observation_with_the_times_of_the_recording(dataset: Path) -> None:
    with open_dataset(dataset) as data:
        cameras = {"observation.images.laptop": FRONT, "observation.images.phone": WRIST}
        seen = observation_of_sample(data.frame(2, cameras.values()), cameras)
    assert seen.task == "reach" and seen.joints.positions.tolist() == [2, -2] and seen.joints.time_ns == 200_000_002
    assert {name: int(frame.image.max()) for name, frame in seen.frames.items()} == {
        "observation.images.laptop": 2,
        "observation.images.phone": 102,
    }
    assert all(frame.captured_ns == seen.joints.time_ns and frame.sequence == 2 for frame in seen.frames.values())


def test_cameras_are_found_by_their_name_on_the_robot_their_name_in_the_policy_or_as_given(dataset: Path) -> None:
    with open_dataset(dataset) as data:
        assert cameras_in(data, POLICY, {}, all_of_them=False) == {FRONT: FRONT}
        given = {"observation.images.phone": WRIST}
        assert cameras_in(data, POLICY, given) == {FRONT: FRONT, "observation.images.phone": WRIST}
        by_policy_name = {"observation.images.camera1": WRIST, "observation.images.phone": FRONT}
        assert cameras_in(data, POLICY, by_policy_name) == {FRONT: WRIST, "observation.images.phone": FRONT}


def test_a_camera_that_is_nowhere_is_named_with_what_there_is(dataset: Path) -> None:
    with open_dataset(dataset) as data:
        with pytest.raises(DatasetError, match=r"no camera phone that the policy sees; there is"):
            cameras_in(data, POLICY, {})
        with pytest.raises(ConfigError, match=r"has no camera wrst; did you mean wrist"):
            cameras_in(data, POLICY, {"observation.images.phone": "observation.images.wrst"})
        with pytest.raises(ConfigError, match=r"the policy has no camera phon; did you mean phone"):
            cameras_in(data, POLICY, {"observation.images.phon": WRIST}, all_of_them=False)
        with pytest.raises(ConfigError, match="front to both front and phone"):
            cameras_in(data, POLICY, {"observation.images.phone": FRONT})
        with pytest.raises(DatasetError, match="none of the policy's arm; map them"):
            cameras_in(data, (CameraSpec("x", "observation.images.arm", 8, 8),), {}, all_of_them=False)
