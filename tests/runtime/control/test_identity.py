# SPDX-License-Identifier: Apache-2.0
"""The identity contract: bundle against arm, calibration, cameras and dataset. Each mismatch is refused by its
name."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from vla_edge.bundle import CameraSpec, open_bundle
from vla_edge.camera_names import short_name
from vla_edge.contract import JointCalibration
from vla_edge.errors import IdentityError
from vla_edge.lerobot_data.layout import Feature
from vla_edge.lerobot_data.reader import open_dataset
from vla_edge.lerobot_data.writer import DatasetWriter
from vla_edge.robot.arm_description import arms_called, load_arm
from vla_edge.robot.joint_calibration import JointCalibrations, JointUnits, save_joint_calibration
from vla_edge.runtime.command import main
from vla_edge.runtime.control.identity import (
    check_camera_places,
    check_joints,
    check_picture_sizes,
    check_start_pose,
    units_of,
)
from vla_edge.trials.identity_check import long_tasks, robot_differences, task_differences

KOCH = load_arm("koch")
KOCH_JOINTS = KOCH.joint_names

CALIBRATION = JointCalibrations(
    tuple(JointCalibration(name, i + 1, 0, 0, 600, 3500) for i, name in enumerate(KOCH_JOINTS)), "arm.json"
)


@pytest.fixture(scope="module")
def bundle(golden_bundle):
    """The golden bundle with units that are known."""
    opened = open_bundle(golden_bundle)
    return replace(opened, manifest=replace(opened.manifest, joint_units="degrees", joints=KOCH_JOINTS))


def tables(**changed):
    """Statistics that fit CALIBRATION in degrees, with fields of one feature changed."""
    known: dict[str, np.ndarray] = {}
    for feature in ("observation.state", "action"):
        known |= {
            f"{feature}.mean": np.zeros(6),
            f"{feature}.std": np.full(6, 20.0),
            f"{feature}.min": np.full(6, -40.0),
            f"{feature}.max": np.full(6, 60.0),
        }
        known[f"{feature}.mean"][5] = 40  # the gripper is 0..100
    for name, level in (("laptop", 0.7), ("phone", 0.3)):
        known |= {
            f"observation.images.{name}.mean": np.full((3, 1, 1), level),
            f"observation.images.{name}.std": np.full((3, 1, 1), 0.2),
        }
    return {name: np.asarray(value, np.float32) for name, value in {**known, **changed}.items()}


def picture(level, height=480, width=640):
    return np.full((height, width, 3), level, np.uint8)


# ---- joints


def test_what_fits_is_let_through(bundle):
    check_joints(bundle, tables(), KOCH, CALIBRATION, JointUnits.DEGREES)
    check_start_pose(bundle, tables(), np.zeros(6, np.float32))
    pictures = {"observation.images.laptop": picture(180), "observation.images.phone": picture(80)}
    check_picture_sizes(bundle, pictures)
    check_camera_places(bundle, tables(), pictures)


def test_other_units_are_refused(bundle):
    with pytest.raises(IdentityError, match="joint units are degrees, --joint-units says range_m100_100"):
        units_of(bundle, "range_m100_100", KOCH, tables(), CALIBRATION)
    # Counts where degrees should be: no joint of this arm reaches that.
    with pytest.raises(
        IdentityError,
        match=r"shoulder_pan: the policy's data has a mean observation.state of 2048 degrees, arm.json allows "
        r"-127\.\.127",
    ):
        check_joints(
            bundle, tables(**{"observation.state.mean": np.full(6, 2048.0)}), KOCH, CALIBRATION, JointUnits.DEGREES
        )


def test_another_joint_order_is_refused(bundle):
    swapped = ("shoulder_lift", "shoulder_pan", *KOCH_JOINTS[2:])
    other = replace(bundle, manifest=replace(bundle.manifest, joints=swapped))
    with pytest.raises(IdentityError, match="joint 'shoulder_lift' stands where a Koch has shoulder_pan"):
        check_joints(other, tables(), KOCH, CALIBRATION, JointUnits.DEGREES)


@pytest.mark.parametrize(
    ("robot_type", "fits"),
    [
        ("", True),
        ("koch", True),
        ("koch_follower", True),
        ("my_arm", True),
        ("so101_follower", False),
        ("so100", False),
    ],
)
def test_data_of_another_kind_of_arm_is_refused(bundle, robot_type, fits):
    other = replace(bundle, manifest=replace(bundle.manifest, robot_type=robot_type))
    if fits:
        check_joints(other, tables(), KOCH, CALIBRATION, JointUnits.DEGREES)
    else:
        with pytest.raises(IdentityError, match=rf"recorded on an SO-10[01] \({robot_type}\), this is a Koch"):
            check_joints(other, tables(), KOCH, CALIBRATION, JointUnits.DEGREES)


def test_arms_of_the_same_servos_and_joints_take_each_others_data():
    assert {arm.name for arm in arms_called("so_follower")} == {"so100", "so101"}
    so100, so101 = load_arm("so100"), load_arm("so101")
    assert (so100.protocol, so100.joint_names) == (so101.protocol, so101.joint_names)
    assert not arms_called("aloha") and [arm.name for arm in arms_called("koch")] == ["koch"]


def test_another_sign_or_zero_is_refused_with_the_joint(bundle):
    mean = tables()["action.mean"].copy()
    mean[2] = 300
    with pytest.raises(IdentityError, match="elbow_flex: the policy's data has a mean action of 300"):
        check_joints(bundle, tables(**{"action.mean": mean}), KOCH, CALIBRATION, JointUnits.DEGREES)


def test_a_start_far_from_every_demonstration_is_refused(bundle):
    pose = np.zeros(6, np.float32)
    pose[3] = 111  # the data's range is -40..60, and half of it beyond is let through
    with pytest.raises(IdentityError, match="wrist_flex stands at 111 degrees, the policy's data goes from -40 to 60"):
        check_start_pose(bundle, tables(), pose)
    pose[3] = 109
    check_start_pose(bundle, tables(), pose)
    unknown = replace(bundle, manifest=replace(bundle.manifest, joint_units="unknown"))
    check_start_pose(unknown, tables(), np.full(6, 999, np.float32))


# ---- cameras


def test_swapped_cameras_are_refused_with_both_names(bundle):
    swapped = {"observation.images.laptop": picture(80), "observation.images.phone": picture(180)}
    with pytest.raises(
        IdentityError, match="cameras observation.images.laptop and observation.images.phone look swapped"
    ):
        check_camera_places(bundle, tables(), swapped)
    # One dark room says nothing about places.
    check_camera_places(
        bundle, tables(), {"observation.images.laptop": picture(20), "observation.images.phone": picture(10)}
    )
    # Without statistics of the pictures nothing can be said.
    check_camera_places(bundle, {name: value for name, value in tables().items() if "images" not in name}, swapped)


def test_a_camera_of_another_aspect_is_refused_by_name_where_the_datas_is_known(bundle):
    with pytest.raises(
        IdentityError, match="camera observation.images.phone gives 640x360, the policy's data has 640x480"
    ):
        check_picture_sizes(
            bundle, {"observation.images.laptop": picture(1), "observation.images.phone": picture(1, 360, 640)}
        )
    check_picture_sizes(bundle, {"observation.images.phone": picture(1, 240, 320)})  # the same aspect is scaled
    unknown = replace(bundle.manifest.cameras[1], seen=False)
    manifest = replace(bundle.manifest, cameras=(bundle.manifest.cameras[0], unknown))
    check_picture_sizes(replace(bundle, manifest=manifest), {"observation.images.phone": picture(1, 360, 640)})


def test_inference_refuses_to_start_with_a_camera_of_another_aspect(golden_bundle, tmp_path, capsys):
    for name, size in (("laptop", (480, 640)), ("phone", (240, 426))):
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / name / "0.png"), np.zeros((*size, 3), np.uint8))
    words = [
        "--bundle",
        str(golden_bundle),
        "--run-dir",
        str(tmp_path / "run"),
        "--task",
        "put it away",
        "--nice",
        "0",
        "--threads",
        "1",
    ]
    cameras = [word for name in ("laptop", "phone") for word in ("--camera", f"{name}=file:{tmp_path / name}")]
    assert main(["inference", *words, *cameras]) == 2
    assert "camera observation.images.phone gives 426x240" in capsys.readouterr().err


def test_a_control_process_refuses_to_start_with_other_units(golden_bundle, tmp_path, capsys):
    known = tmp_path / "bundle"
    shutil.copytree(golden_bundle, known)
    manifest = json.loads((known / "manifest.json").read_text())
    manifest["joint_units"] = "degrees"
    (known / "manifest.json").write_text(json.dumps(manifest))
    save_joint_calibration(CALIBRATION.joints, tmp_path / "arm.json")
    words = [
        "--bundle",
        str(known),
        "--port",
        str(tmp_path / "none"),
        "--joints",
        str(tmp_path / "arm.json"),
        "--run-dir",
        str(tmp_path / "run"),
    ]
    assert main(["control", *words, "--joint-units", "range_m100_100"]) == 2
    assert "joint units are degrees, --joint-units says range_m100_100" in capsys.readouterr().err


# ---- dataset


def write_data(
    path: Path, joints=KOCH_JOINTS, cameras=("laptop", "phone"), size=(480, 640), task="put it away", scale=1.0
) -> Path:
    features = {
        "observation.state": Feature("float32", (6,), list(joints)),
        "action": Feature("float32", (6,), list(joints)),
    }
    features |= {
        f"observation.images.{name}": Feature("image", (*size, 3), ["height", "width", "channels"]) for name in cameras
    }
    generator = np.random.default_rng(0)
    with DatasetWriter(path, 30, features) as writer:
        for _ in range(6):
            values = {
                name: (generator.normal(0, 20, 6) * scale).astype(np.float32)
                for name in ("observation.state", "action")
            }
            writer.add_frame(
                {**values, **{f"observation.images.{name}": np.zeros((*size, 3), np.uint8) for name in cameras}}, task
            )
        writer.save_episode()
    return path


def statistics_of(path: Path) -> dict[str, np.ndarray]:
    with open_dataset(path) as dataset:
        return {
            f"{feature}.{name}": np.asarray(value, np.float32)
            for feature in ("observation.state", "action")
            for name, value in dataset.stats[feature].items()
        }


@pytest.fixture(scope="module")
def trained_on(tmp_path_factory):
    """(dataset, its statistics as a bundle holds them)."""
    path = write_data(tmp_path_factory.mktemp("identity") / "data")
    return path, statistics_of(path)


def differences_of(bundle, known, path):
    with open_dataset(path) as dataset:
        return [*robot_differences(bundle, known, dataset), *task_differences(bundle, dataset.tasks.values())]


def test_the_dataset_it_was_trained_on_has_no_difference(bundle, trained_on):
    assert differences_of(bundle, trained_on[1], trained_on[0]) == []


@pytest.mark.parametrize(
    "change, told",
    [
        (
            {"joints": (KOCH_JOINTS[1], KOCH_JOINTS[0], *KOCH_JOINTS[2:])},
            "joint 1 is shoulder_lift, the bundle's is shoulder_pan; the order of joints differs",
        ),
        (
            {"cameras": ("phone", "laptop")},
            "the order of cameras differs: phone, laptop in the dataset, laptop, phone in the bundle",
        ),
        ({"cameras": ("laptop", "front")}, "no camera phone; there is laptop, front"),
        ({"size": (240, 320)}, "camera laptop is 320x240 in the dataset, 640x480 in the bundle"),
        ({"scale": np.pi / 180}, "the policy was trained on other data or other units"),
        ({"scale": 1.1}, "the policy was trained on other data or other units"),
        ({"task": "put the bracelet into the box " * 12}, "tokens, the policy takes 48: it would be cut"),
    ],
    ids=["joint order", "camera order", "camera name", "camera size", "units", "statistics", "truncated instruction"],
)
def test_each_difference_of_a_dataset_is_named(bundle, trained_on, tmp_path, change, told):
    found = differences_of(bundle, trained_on[1], write_data(tmp_path / "data", **change))
    assert found and any(told in line for line in found), found


def test_cameras_are_called_in_the_data_as_they_were_at_export(bundle, trained_on, tmp_path):
    data = write_data(tmp_path / "data", cameras=("wrist", "front"))
    in_data = {"laptop": "front", "phone": "wrist"}
    cameras = tuple(
        replace(item, in_data=f"observation.images.{in_data[short_name(item.source)]}")
        for item in bundle.manifest.cameras
    )
    exported = replace(bundle, manifest=replace(bundle.manifest, cameras=cameras))
    assert differences_of(exported, trained_on[1], data) == []
    told = differences_of(bundle, trained_on[1], data)
    assert told[0] == "the dataset has none of the policy's cameras laptop, phone; there is wrist, front", told
    assert differences_of(exported, *reversed(trained_on)) == [], "data that has the policy's own names fits too"


def test_fewer_names_than_joints_are_a_difference_and_no_traceback(bundle, trained_on, tmp_path):
    data = write_data(tmp_path / "data")
    info = json.loads((data / "meta" / "info.json").read_text())
    for name in ("observation.state", "action"):
        info["features"][name]["names"] = list(KOCH_JOINTS[:5])
    (data / "meta" / "info.json").write_text(json.dumps(info))
    assert differences_of(bundle, trained_on[1], data)


def test_a_dataset_of_another_rate_is_named_where_the_bundle_knows_its_own(bundle, trained_on):
    paced = replace(bundle, manifest=replace(bundle.manifest, fps=25.0))
    assert differences_of(paced, trained_on[1], trained_on[0]) == [
        "the dataset has 30 frames a second, the bundle's policy moves by 25 actions a second"
    ]
    assert differences_of(replace(bundle, manifest=replace(bundle.manifest, fps=30.0)), *reversed(trained_on)) == []


def test_the_command_names_the_differences_and_fails(golden_bundle, tmp_path, capsys):
    path = write_data(tmp_path / "data", task="put the bracelet into the box " * 12)
    assert main(["identity", "--bundle", str(golden_bundle), "--dataset", str(path), "--json"]) == 1
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert any("it would be cut" in line for line in result["differences"])
    assert captured.err.splitlines()[:-1] == result["differences"] and result["exit_code"] == 1
    assert main(["identity", "--bundle", str(golden_bundle)]) == 2


def test_long_tasks_are_counted_with_the_policys_own_tokenizer(bundle, tmp_path):
    from vla_edge.lerobot_data.task_texts import load_counter

    text = "put the bracelet into the box " * 12
    with open_dataset(write_data(tmp_path / "data", task=text.strip())) as dataset:
        (found,) = long_tasks(bundle, dataset.tasks.values())
    assert found.limit == 48 and found.tokens == load_counter(bundle.path).count(text.strip()) > 48


def test_cameras_are_known_under_their_names_before_rename_map_too(bundle):
    renamed = replace(
        bundle,
        manifest=replace(
            bundle.manifest, cameras=(CameraSpec("observation.images.camera1", "observation.images.laptop", 480, 640),)
        ),
    )
    with pytest.raises(IdentityError, match="camera observation.images.laptop gives 48x64"):
        check_picture_sizes(renamed, {"observation.images.laptop": picture(0, 64, 48)})


@pytest.mark.parametrize(
    ("low", "high", "found"),
    [
        (-120.0, 110.0, JointUnits.DEGREES),  # more than a hundred
        (-95.0, 60.0, None),  # either
        (-99.0, 130.0, JointUnits.DEGREES),
        (-150.0, 30.0, None),  # neither: beyond this arm's -127 to 127 degrees
    ],
)
def test_the_units_of_an_so101_are_recognised_from_what_its_data_reached_or_refused(bundle, low, high, found):
    arm = load_arm("so101")
    unknown = replace(bundle, manifest=replace(bundle.manifest, joint_units="unknown"))
    least, most = np.full(6, low, np.float32), np.full(6, high, np.float32)
    least[5], most[5] = 2.0, 90.0  # the gripper is 0 to 100 in both
    reached = {"observation.state.min": least, "observation.state.max": most}
    if found is None:
        with pytest.raises(IdentityError, match="say it with --joint-units degrees or --joint-units range_m100_100"):
            units_of(unknown, None, arm, reached, CALIBRATION)
    else:
        units, told = units_of(unknown, None, arm, reached, CALIBRATION)
        assert units is found and told is not None and "fits degrees alone" in told
    assert units_of(unknown, "range_m100_100", arm, reached, CALIBRATION) == (JointUnits.RANGE_M100_100, None)
    narrow = JointCalibrations(
        tuple(replace(j, range_min=1400, range_max=2600) for j in CALIBRATION.joints), "arm.json"
    )
    if found is None and low > -100:  # as degrees it would leave an arm that turns 53 degrees to each side
        assert units_of(unknown, None, arm, reached, narrow)[0] is JointUnits.RANGE_M100_100
