# SPDX-License-Identifier: Apache-2.0
"""A camera that stands elsewhere than in the data, and a start pose outside it: named, with where to and how far."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from vla_edge.bundle import open_bundle
from vla_edge.doctor import main
from vla_edge.lerobot_data.layout import Feature
from vla_edge.lerobot_data.writer import DatasetWriter
from vla_edge.robot.arm_description import load_arm
from vla_edge.robot.camera_options import parse_cameras
from vla_edge.robot.sim.emulator_process import emulator_process
from vla_edge.trials.deploy_check import FAILED, NOT_RUN, PASSED
from vla_edge.trials.place_check import camera_verdict, check_cameras, check_start_pose, move_between, pose_outside

KOCH = load_arm("koch")
KOCH_JOINTS = KOCH.joint_names

HEIGHT, WIDTH = 240, 320
RNG = np.random.default_rng(3)


def workplace(rng: np.random.Generator) -> NDArray[np.uint8]:
    """A table with things that stay where they are, larger than any camera's view."""
    picture = np.full((HEIGHT + 200, WIDTH + 200, 3), 120, np.uint8)
    for _ in range(40):
        x, y, w, h = rng.integers(0, (WIDTH + 150, HEIGHT + 150, 90, 70))
        colour = tuple(int(value) for value in rng.integers(0, 256, 3))
        cv2.rectangle(picture, (int(x), int(y)), (int(x + w), int(y + h)), colour, -1)
    return np.asarray(cv2.GaussianBlur(picture, (5, 5), 0), np.uint8)


TABLE = workplace(RNG)


def seen(
    right: int = 0, down: int = 0, turn_deg: float = 0.0, light: float = 1.0, seed: int = 0, table: NDArray = TABLE
) -> NDArray[np.uint8]:
    """The view of a camera moved by pixels and degrees, with a cube and an arm's tip somewhere."""
    rng = np.random.default_rng(seed)
    middle = (100 + WIDTH / 2, 100 + HEIGHT / 2)
    turned = cv2.warpAffine(table, cv2.getRotationMatrix2D(middle, turn_deg, 1.0), table.shape[1::-1])
    view = turned[100 + down : 100 + down + HEIGHT, 100 + right : 100 + right + WIDTH].copy()
    for size in (24, 40):
        x, y = rng.integers(20, (WIDTH - 60, HEIGHT - 60))
        cv2.rectangle(view, (int(x), int(y)), (int(x) + size, int(y) + size), (200, 30, 30), -1)
    noise = rng.integers(-6, 7, view.shape)
    return np.clip(view * light + noise, 0, 255).astype(np.uint8)


RECORDED = [seen(seed=number) for number in range(8)]


@pytest.mark.parametrize("light", [0.6, 1.0, 1.2])
def test_a_camera_where_it_was_passes_in_any_light_and_with_other_things_about(light: float) -> None:
    told, good = camera_verdict(RECORDED, seen(light=light, seed=99))
    assert good and "moved by" in told


@pytest.mark.parametrize(
    ("move", "said"),
    [
        ({"right": 25}, "7.8% to the left"),
        ({"right": -25}, "7.8% to the right"),
        ({"down": 20}, "6.2% up"),
        ({"turn_deg": 6.0}, "anticlockwise"),
        ({"turn_deg": -6.0}, "turned by 6.0° clockwise"),
    ],
)
def test_a_camera_that_was_moved_is_told_with_the_way_its_picture_moved(move: dict[str, float], said: str) -> None:
    told, good = camera_verdict(RECORDED, seen(seed=99, **move))  # type: ignore[arg-type]
    number = said.split("%")[0]
    assert not good and said.split("%")[-1].strip().removeprefix("turned by 6.0° ") in told, told
    if number.replace(".", "").isdigit():
        shares = [float(word.rstrip("%")) for word in told.split() if word.endswith("%")]
        assert min(abs(share - float(number)) for share in shares) < 0.7, told


def test_a_camera_that_shows_another_place_or_shape_is_told_so() -> None:
    other = workplace(np.random.default_rng(50))
    told, good = camera_verdict(RECORDED, seen(table=other))
    assert not good and ("shows something else" in told or "moved by" in told)
    told, good = camera_verdict(RECORDED, seen()[:120])
    assert not good and "another shape of picture (320x120)" in told


def test_data_whose_own_camera_moved_allow_as_much() -> None:
    """A table knocked between two days of recording: neither place is the wrong one."""
    recorded = [seen(right=12 * (number % 2), seed=number) for number in range(8)]
    assert camera_verdict(recorded, seen(right=14, seed=99))[1] and not camera_verdict(recorded, seen(right=60))[1]


def test_two_equal_pictures_have_not_moved() -> None:
    grey = np.asarray(cv2.cvtColor(seen(), cv2.COLOR_RGB2GRAY)[::2, ::2] / 255, np.float32)
    move = move_between(grey, grey)
    assert move.farthest < 1e-3 and move.likeness > 0.999


def test_a_joint_outside_the_starts_is_named_with_where_they_were() -> None:
    starts = np.array([[0.0, 10], [2.0, 12]])
    states = np.array([[0.0, 10], [50.0, 110]])
    assert pose_outside({"lift": 3.0, "grip": 21.9}, starts, states) == []
    (told,) = pose_outside({"lift": 30.0, "grip": 11.0}, starts, states)
    assert told == "lift stands at 30.0, episodes began between 0.0 and 2.0"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four episodes of the Koch that begin at -10 to 10 degrees; only the laptop's camera."""
    root = tmp_path_factory.mktemp("place") / "data"
    joints = [f"{name}.pos" for name in KOCH_JOINTS]
    vector = Feature("float32", (6,), joints)
    camera = Feature("image", (HEIGHT, WIDTH, 3), ["height", "width", "channels"])
    features = {"observation.state": vector, "action": vector, "observation.images.laptop": camera}
    with DatasetWriter(root, 30, features, robot_type="koch") as writer:
        for episode in range(4):
            for frame in range(3):
                pose = np.full(6, -10 + 20 * episode / 3 + 30 * frame, np.float32)
                values = {"observation.state": pose, "action": pose}
                writer.add_frame({**values, "observation.images.laptop": seen(seed=episode)}, "put it away")
            writer.save_episode()
    return root


def joints_file(folder: Path) -> Path:
    rows = {
        name: {"id": number, "drive_mode": 0, "homing_offset": 0, "range_min": 1000, "range_max": 3095}
        for number, name in enumerate(KOCH_JOINTS, 1)
    }
    (folder / "koch.json").write_text(json.dumps(rows))
    return folder / "koch.json"


def test_doctor_looks_through_the_cameras_and_reads_the_pose(
    golden_bundle: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = open_bundle(golden_bundle)
    np.savez(tmp_path / "right.npz", laptop=seen(seed=7), phone=seen(seed=8))
    np.savez(tmp_path / "moved.npz", laptop=seen(right=40, seed=7))
    good = parse_cameras([f"{name}={tmp_path / 'right.npz'}" for name in ("laptop", "phone")])
    item = check_cameras(bundle, data, good)
    assert item.state == PASSED and "laptop moved by" in item.found and "phone is not in the data" in item.found
    item = check_cameras(bundle, data, parse_cameras([f"laptop={tmp_path / 'moved.npz'}"]))
    assert item.state == FAILED and "to the left" in item.found
    assert check_cameras(bundle, data, parse_cameras(["laptop=file:gone.npz"])).state == FAILED
    assert check_cameras(bundle, None, good).state == NOT_RUN
    joints = joints_file(tmp_path)
    positions = ("--positions", "2047", "2047", "2047", "2700", "2047", "1100")
    with emulator_process(tmp_path, "--joints", str(joints), *positions) as arm:
        item = check_start_pose(bundle, data, "koch", str(arm.port), joints, "degrees")
        assert item.state == FAILED and item.found.startswith("wrist_flex stands at 57.4, episodes began between -10.0")
        words = ["deploy", str(golden_bundle), "--dataset", str(data), "--port", str(arm.port), "--joints", str(joints)]
        assert main([*words, "--joint-units", "degrees", "--camera", f"laptop={tmp_path / 'moved.npz'}", "--json"]) == 1
    told = {row["name"]: row for row in json.loads(capsys.readouterr().out)["checks"]}
    assert told["camera place"]["state"] == FAILED == told["start pose"]["state"]
    assert main(["deploy", str(golden_bundle), "--camera", "latop=0"]) == 2
    assert "the policy has no camera latop; did you mean laptop?" in capsys.readouterr().err
    item = check_start_pose(bundle, data, "koch", str(tmp_path / "gone"), joints, "degrees")
    assert item.state == NOT_RUN and "gone" in item.found
