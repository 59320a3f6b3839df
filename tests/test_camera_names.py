# SPDX-License-Identifier: Apache-2.0
"""Camera names as people write them and feature keys as files hold them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_edge.camera_names import camera_pairs, feature_key, is_camera_key, nearest, short_name
from vla_edge.errors import ConfigError
from vla_edge.robot.camera_options import parse_camera


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("laptop", "observation.images.laptop"),
        ("observation.images.laptop", "observation.images.laptop"),
        ("top-cam", "observation.images.top-cam"),
        ("left wrist", "observation.images.left wrist"),
        ("wrist.left", "observation.images.wrist.left"),
        ("observation.image", "observation.image"),
        ("pixels", "pixels"),
    ],
)
def test_a_short_name_and_a_key_mean_the_same_camera(name: str, key: str) -> None:
    assert feature_key(name) == key == feature_key(short_name(key)) and is_camera_key(key)
    assert parse_camera(f"{name}=/dev/video0").name == key


@given(key=st.text().map(lambda name: "observation.images." + name) | st.sampled_from(["observation.image", "pixels"]))
def test_every_key_comes_back_from_its_short_name(key: str) -> None:
    assert feature_key(short_name(key)) == key


def test_a_key_of_another_form_is_told_by_the_known_ones() -> None:
    assert feature_key("cam_high", ["cam_high"]) == "cam_high"
    assert feature_key("cam_high", ["observation.images.cam_high"]) == "observation.images.cam_high"


def test_pairs_of_cameras_take_both_forms() -> None:
    assert camera_pairs(["laptop=observation.images.front", "observation.image=top-cam"]) == {
        "observation.images.laptop": "observation.images.front",
        "observation.image": "observation.images.top-cam",
    }
    for text in ("laptop", "=front", "laptop="):
        with pytest.raises(ConfigError, match="give NAME=DATASET_NAME"):
            camera_pairs([text])


@pytest.mark.parametrize("text", ("=/dev/video0", "a/b=/dev/video0", "a,b=/dev/video0", " =/dev/video0", "top"))
def test_what_is_no_camera_name_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not NAME=DEVICE"):
        parse_camera(text)


def test_a_mistyped_camera_gets_a_suggestion() -> None:
    known = ["observation.images.laptop", "observation.images.phone"]
    assert nearest("labtop", known) == "did you mean laptop?"
    assert nearest("zzz", known) == "there is laptop, phone" and nearest("zzz", []) == "there is none"
