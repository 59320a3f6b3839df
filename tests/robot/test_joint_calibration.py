# SPDX-License-Identifier: Apache-2.0
"""LeRobot's calibration JSON and its normalisation, both ways."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_edge.contract import JointCalibration
from vla_edge.errors import JointCalibrationError
from vla_edge.robot.arm_description import load_arm
from vla_edge.robot.joint_calibration import (
    JointCalibrations,
    JointUnits,
    counts_from_unit,
    dump_joint_calibration,
    linear_map,
    load_joint_calibration,
    save_joint_calibration,
    unit_from_counts,
)

KOCH = load_arm("koch")
KOCH_JOINTS = KOCH.joint_names

FIELDS = ("id", "drive_mode", "homing_offset", "range_min", "range_max")

# As LeRobot's `_save_calibration` writes it: json.dump of the five fields per motor, indent 4.
LEROBOT_FILE = (
    "{\n"
    + ",\n".join(
        f'    "{name}": {{\n        "id": {i + 1},\n        "drive_mode": 0,\n        "homing_offset": {-100 * i},\n'
        f'        "range_min": {700 + i},\n        "range_max": {3300 + i}\n    }}'
        for i, name in enumerate(KOCH_JOINTS)
    )
    + "\n}"
)


def read(data: bytes) -> JointCalibrations:
    """The calibration in a file of these bytes."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "arm.json"
        file.write_bytes(data)
        return load_joint_calibration(file, KOCH)


def joints(text: str = LEROBOT_FILE) -> tuple[JointCalibration, ...]:
    return read(text.encode()).joints


def test_lerobots_file_is_read_and_written_unchanged(tmp_path: Path) -> None:
    save_joint_calibration(joints(), tmp_path / "arm.json")
    assert (tmp_path / "arm.json").read_text() == LEROBOT_FILE
    assert load_joint_calibration(tmp_path / "arm.json", KOCH).joints == joints()


def reference(joint: JointCalibration, units: JointUnits, raw: int) -> float:
    """LeRobot's normalisation, formula by formula (RUNTIME.md §6)."""
    low, high = joint.range_min, joint.range_max
    inside = min(high, max(low, raw))
    if joint.name == "gripper":
        return (inside - low) / (high - low) * 100
    if units is JointUnits.RANGE_M100_100:
        return (inside - low) / (high - low) * 200 - 100
    return (raw - (low + high) / 2) * 360 / 4095


@given(st.integers(-5000, 9000), st.sampled_from(range(6)), st.sampled_from(JointUnits))
def test_counts_become_units_by_lerobots_formulas(raw: int, index: int, units: JointUnits) -> None:
    joint = joints()[index]
    assert unit_from_counts(joint, units, raw) == pytest.approx(reference(joint, units, raw), abs=1e-9)


@given(st.data(), st.sampled_from(range(6)), st.sampled_from(JointUnits))
def test_counts_survive_the_way_to_units_and_back(data: st.DataObject, index: int, units: JointUnits) -> None:
    joint = joints()[index]
    raw = data.draw(st.integers(joint.range_min, joint.range_max))
    assert counts_from_unit(joint, units, unit_from_counts(joint, units, raw)) == raw


@given(st.floats(allow_nan=True, allow_infinity=True), st.sampled_from(range(6)))
def test_ranged_goals_stay_in_the_range_and_not_finite_ones_are_refused(value: float, index: int) -> None:
    joint = joints()[index]
    if value != value or value in (float("inf"), float("-inf")):
        with pytest.raises(JointCalibrationError, match=joint.name):
            counts_from_unit(joint, JointUnits.RANGE_M100_100, value)
    else:
        assert joint.range_min <= counts_from_unit(joint, JointUnits.RANGE_M100_100, value) <= joint.range_max


@pytest.mark.parametrize("drive_mode", [0, 1])
def test_drive_mode_changes_no_formula_because_the_servo_applies_it(drive_mode: int) -> None:
    joint = JointCalibration("elbow_flex", 3, drive_mode, 0, 1000, 3000)
    assert unit_from_counts(joint, JointUnits.RANGE_M100_100, 1500) == -50.0
    assert linear_map(joint, JointUnits.DEGREES).scale == pytest.approx(4095 / 360)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", 300),
        ("id", "1"),
        ("drive_mode", 2),
        ("homing_offset", 1.5),
        ("range_min", None),
        ("range_max", True),
        ("range_min", 3302),
    ],
)
def test_a_bad_field_is_named_with_its_joint_and_file(field: str, value: object) -> None:
    data = json.loads(LEROBOT_FILE)
    data["elbow_flex"][field] = value
    with pytest.raises(JointCalibrationError, match=rf"arm\.json: elbow_flex\.{field} "):
        joints(json.dumps(data))


def test_missing_unknown_and_doubled_joints_are_named() -> None:
    data = json.loads(LEROBOT_FILE)
    wrist = data.pop("wrist_roll")
    with pytest.raises(JointCalibrationError, match="wrist_roll is missing"):
        joints(json.dumps(data))
    with pytest.raises(JointCalibrationError, match="'tail' is unknown"):
        joints(json.dumps({**data, "wrist_roll": wrist, "tail": wrist}))
    with pytest.raises(JointCalibrationError, match="id 1 is used twice"):
        joints(json.dumps({**data, "wrist_roll": {**wrist, "id": 1}}))


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(JointCalibrationError, match="calibrate-joints"):
        load_joint_calibration(tmp_path / "none.json", KOCH)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*KOCH_JOINTS, *FIELDS, "x"]), inner, max_size=6)
    ),
    max_leaves=20,
)


@settings(max_examples=300)
@given(st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()) | st.just(b"[" * 100_000))
def test_any_bytes_end_in_a_calibration_or_one_line(data: bytes) -> None:
    try:
        read(data)
    except JointCalibrationError as error:
        assert "arm.json: " in str(error) and len(str(error)) < 400


joint_fields = st.fixed_dictionaries(
    {
        "drive_mode": st.integers(0, 1),
        "homing_offset": st.integers(-1_044_479, 1_044_479),
        "range_min": st.integers(0, 2000),
        "range_max": st.integers(2000, 4095),
    }
)


@given(st.permutations(range(1, 7)), st.lists(joint_fields, min_size=6, max_size=6))
def test_what_is_valid_is_accepted_and_round_trips(ids: list[int], fields: list[dict]) -> None:
    data = {name: {"id": i, **values} for name, i, values in zip(KOCH_JOINTS, ids, fields)}
    if any(values["range_min"] == values["range_max"] for values in fields):
        with pytest.raises(JointCalibrationError, match="not below range_max"):
            joints(json.dumps(data))
    else:
        assert json.loads(dump_joint_calibration(joints(json.dumps(data)))) == data


def test_the_format_of_2024_is_called_by_its_name() -> None:
    old = {
        "homing_offset": [0] * 6,
        "drive_mode": [0] * 6,
        "calib_mode": ["DEGREE"] * 6,
        "motor_names": list(KOCH_JOINTS),
    }
    with pytest.raises(JointCalibrationError, match=r"format of 2024.*calibrate-joints"):
        joints(json.dumps(old))
