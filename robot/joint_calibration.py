# SPDX-License-Identifier: Apache-2.0
"""Joint calibration: LeRobot's JSON, counts to joint units and back.

One object per joint with `id, drive_mode, homing_offset, range_min, range_max` (the file LeRobot writes for a Koch
follower, read and written unchanged). The servo itself applies drive mode and homing offset (EEPROM), so the counts on
the bus have both in them already: that is why `drive_mode` changes no formula here, as it changes none in LeRobot's
Dynamixel bus; it is only compared at start.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from vla_edge.contract import JointCalibration
from vla_edge.errors import JointCalibrationError
from vla_edge.fields import read_object
from vla_edge.files import write_text
from vla_edge.robot.arm_description import SIDES, ArmDescription

_ADVICE = "give LeRobot's calibration of this arm"
LEROBOT = "lerobot:"
"""Before the id of an arm whose calibration LeRobot keeps."""
_FIELDS: dict[str, tuple[int, int]] = {
    "id": (0, 252),
    "drive_mode": (0, 1),
    "homing_offset": (-1_044_479, 1_044_479),
    "range_min": (-1_048_575, 1_048_575),
    "range_max": (-1_048_575, 1_048_575),
}
"""Field: lowest and highest value (X-series control table)."""


class JointUnits(Enum):
    """Unit of joint values. The gripper is 0..100 in both."""

    RANGE_M100_100 = "range_m100_100"
    DEGREES = "degrees"


@dataclass(frozen=True, slots=True)
class LinearMap:
    """counts = scale · unit + offset, for one joint; what the C loop is given."""

    scale: float
    offset: float


@dataclass(frozen=True, slots=True)
class JointCalibrations:
    """All joints of one arm in the order of its description. `source`: the file, for messages."""

    joints: tuple[JointCalibration, ...]
    source: str

    def joint(self, name: str) -> JointCalibration:
        for joint in self.joints:
            if joint.name == name:
                return joint
        raise JointCalibrationError(
            f"joint {name!r} is unknown; choose one of {', '.join(j.name for j in self.joints)}"
        )


def lerobot_files(arm: ArmDescription, environment: Mapping[str, str] = os.environ) -> list[Path]:
    """LeRobot's calibration files of such arms, of this user; parking poses lie beside them."""
    home = environment.get("HF_HOME", os.path.join(environment.get("HOME", ""), ".cache", "huggingface"))
    lerobot = environment.get("HF_LEROBOT_HOME", os.path.join(home, "lerobot"))
    folder = Path(environment.get("HF_LEROBOT_CALIBRATION", os.path.join(lerobot, "calibration")))
    found = (file for kind in arm.lerobot_folders for file in folder.glob(f"robots/{kind}/*.json"))
    return sorted(file for file in found if not file.stem.endswith(".park"))


def named_file(path: Path, arm: ArmDescription) -> Path:
    """`path`, or of `lerobot:ID` the file that LeRobot keeps of the arm with that id. JointCalibrationError: none, or
    two, as LeRobot has renamed its folder."""
    name = str(path)
    if not name.startswith(LEROBOT):
        return path
    wanted = name.removeprefix(LEROBOT)
    files = lerobot_files(arm)
    found = [file for file in files if file.stem == wanted]
    if len(found) == 1:
        return found[0]
    if found:
        raise JointCalibrationError(
            f"--joints {name}: LeRobot has {' and '.join(map(str, found))}; give the path of the newer one"
        )
    ids = sorted({file.stem for file in files})
    raise JointCalibrationError(
        f"--joints {name}: LeRobot has no calibration of {arm.title} with that id"
        + (f"; there are {', '.join(ids)}" if ids else "; calibrate it, or give the path of its file")
    )


def load_joint_calibration(path: Path, arm: ArmDescription) -> JointCalibrations:
    """Read a calibration file, also as `lerobot:ID`; JointCalibrationError names file, joint and field."""
    if arm.buses > 1 and str(path).startswith(LEROBOT):
        return _of_two(path, arm)
    path = named_file(path, arm)
    missing = f"no calibration file; make one with `vla-runtime calibrate-joints --joints {path}`"
    return joint_calibration_of(read_object(path, JointCalibrationError, _ADVICE, missing), str(path), arm)


def _of_two(path: Path, arm: ArmDescription) -> JointCalibrations:
    """Of `lerobot:ID` the files that LeRobot keeps of the two arms, ID_left and ID_right, as one."""
    whole: dict[str, Any] = {}
    files = [named_file(Path(f"{path}_{side[:-1]}"), arm) for side in SIDES]
    for side, file in zip(SIDES, files):
        content = read_object(file, JointCalibrationError, _ADVICE)
        whole |= {side + name: fields for name, fields in content.items()}
    return joint_calibration_of(whole, str(files[0]).replace("_left.json", "_{left,right}.json"), arm)


def joint_calibration_of(data: Mapping[str, Any], source: str, arm: ArmDescription) -> JointCalibrations:
    """data: the file's object; `source` stands in messages. JointCalibrationError names joint and field."""
    if "motor_names" in data or "calib_mode" in data:
        raise JointCalibrationError(
            f"{source}: LeRobot's calibration format of 2024 (lists by motor), whose numbers mean other poses; measure "
            "this arm anew with `vla-runtime calibrate-joints`, or with a LeRobot of 2025 or later"
        )
    missing = [name for name in arm.joint_names if name not in data]
    unknown = [name for name in data if name not in arm.joint_names]
    if missing or unknown:
        what = f"joint {missing[0]} is missing" if missing else f"joint {unknown[0]!r} is unknown"
        raise JointCalibrationError(f"{source}: {what}; {arm.title} has {', '.join(arm.joint_names)}")
    joints = tuple(_joint(name, data[name], source, arm) for name in arm.joint_names)
    ids = [(arm.joint(joint.name).bus, joint.id) for joint in joints]
    for joint, used in zip(joints, ids):
        if ids.count(used) > 1:
            raise JointCalibrationError(
                f"{source}: {joint.name}.id {joint.id} is used twice; each servo has its own id"
            )
    return JointCalibrations(joints, source)


def _joint(name: str, fields: object, source: str, arm: ArmDescription) -> JointCalibration:
    if not isinstance(fields, dict):
        raise JointCalibrationError(f"{source}: {name} is not an object with {', '.join(_FIELDS)}")
    for field, (low, high) in _FIELDS.items():
        value = fields.get(field)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise JointCalibrationError(
                f"{source}: {name}.{field} is {value!r:.40}; it must be an integer of {low}..{high}"
            )
    if fields["range_min"] >= fields["range_max"]:
        raise JointCalibrationError(
            f"{source}: {name}.range_min {fields['range_min']} is not below range_max {fields['range_max']}; "
            "calibrate again"
        )
    values = {field: fields[field] for field in _FIELDS}
    return JointCalibration(name=name, **values, counts_per_turn=arm.counts_per_turn)


def dump_joint_calibration(joints: Sequence[JointCalibration]) -> str:
    """The JSON as LeRobot writes it (indent 4, joints in order)."""
    data: Mapping[str, Any] = {joint.name: {field: getattr(joint, field) for field in _FIELDS} for joint in joints}
    return json.dumps(data, indent=4)


def save_joint_calibration(joints: Sequence[JointCalibration], path: Path) -> None:
    """Write the file whole or not at all."""
    write_text(path, dump_joint_calibration(joints))


def linear_map(joint: JointCalibration, units: JointUnits) -> LinearMap:
    """The joint's map without the clamping to its range.

    RANGE_M100_100: (raw − min)/(max − min)·200 − 100; gripper …·100; DEGREES:
    (raw − mid)·360/4095 with mid = (min + max)/2 (LeRobot's normalisation).
    """
    span = joint.range_max - joint.range_min
    if joint.grips:
        return LinearMap(span / 100, joint.range_min)
    if units is JointUnits.DEGREES:
        return LinearMap((joint.counts_per_turn - 1) / 360, (joint.range_min + joint.range_max) / 2)
    return LinearMap(span / 200, joint.range_min + span / 2)


def unit_from_counts(joint: JointCalibration, units: JointUnits, counts: int) -> float:
    """Joint units of a present position; the ranged units clamp to the calibrated range, degrees do not."""
    if joint.grips or units is JointUnits.RANGE_M100_100:
        counts = min(max(counts, joint.range_min), joint.range_max)
    line = linear_map(joint, units)
    return (counts - line.offset) / line.scale


def counts_from_unit(joint: JointCalibration, units: JointUnits, value: float, truncated: bool = False) -> int:
    """Goal counts of a joint value, rounded to the nearest count; truncated: cut towards zero, as LeRobot does, at most
    one count apart.

    The ranged units clamp to −100..100 (gripper 0..100), degrees do not.
    """
    if not math.isfinite(value):
        raise JointCalibrationError(f"{joint.name}: {value} is not a position; give a finite number")
    if joint.grips:
        value = min(max(value, 0.0), 100.0)
    elif units is JointUnits.RANGE_M100_100:
        value = min(max(value, -100.0), 100.0)
    line = linear_map(joint, units)
    counts = line.scale * value + line.offset
    return int(counts) if truncated else round(counts)
