# SPDX-License-Identifier: Apache-2.0
"""Descriptions of arms: those of the house, and everything that a stranger's can be wrong in."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from vla_edge.contract import JointCalibration
from vla_edge.core import load_core
from vla_edge.errors import ConfigError
from vla_edge.fields import build, read_object
from vla_edge.robot.arm_description import (
    ARMS,
    JOINT_UNITS,
    LAST_ADDRESS,
    OPTIONAL_ROLES,
    ROLES,
    ArmDescription,
    arm_names,
    load_arm,
)
from vla_edge.robot.arm_parts import FASTEST, ArmJoint, MotionLimits, RegisterPlace, ServoKind, Setting, Watchdog
from vla_edge.robot.joint_calibration import JointUnits, save_joint_calibration
from vla_edge.robot.sim.emulator_process import emulator_process
from vla_edge.runtime.command import main
from vla_edge.runtime.control.control_process import limits_of
from vla_edge.runtime.control.control_settings import ControlSettings, JointLimits
from vla_edge.trials.safety_check import any_calibration

pytest.importorskip("vla_edge._core")

SO101 = load_arm("so101")
JOINT = "{name: a, id: 1, servo: STS3215, mode: 0, gravity: 20}"
BAD_DESCRIPTIONS = [
    ("joint: []", "unknown field joint; did you mean 'joints'"),
    ("name: an arm", "name is 'an arm', must be 1 to 23 letters"),
    ("tool: ' '", "tool is empty"),
    ("protocol: feetech1", "protocol is 'feetech1', must be one of dynamixel2, feetech0"),
    ("baud: 1000000000", "baud is 1000000000, must be 9600 to 1e+07"),
    ("baud_code: 256", "baud_code is 256, must be 0 to 255"),
    ("joint_units: [radians]", "joint_units[0] is 'radians', must be one of range_m100_100, degrees"),
    ("joint_units: []", "joint_units is empty"),
    ("counts_per_turn: 0", "counts_per_turn is 0"),
    ("velocity_unit: .nan", "velocity_unit is nan"),
    ("homing_sign: 0", "homing_sign is 0, must be -1 or 1"),
    ("servos: {STS3215: {model: 777, volts: {}, max_celsius: 70}}", "servos.STS3215: volts is empty"),
    (
        "servos: {STS3215: {model: 777, volts: {12 V: [13, 9]}, max_celsius: 70}}",
        "volts.12 V is 13.0 to 9.0, must rise",
    ),
    ("servos: {STS3215: {model: -1, volts: {12 V: [9, 13]}, max_celsius: 70}}", "servos.STS3215: model is -1"),
    ("servos: {STS3215: {model: 777, volts: {12 V: [9, 13]}, max_celsius: 7}}", "max_celsius is 7, must be 20 to 150"),
    ("servos: {}", "servos is empty"),
    ("modes: {}", "joints[0].mode is 0, which has no name among modes"),
    ("modes: {one: position}", "modes has the key 'one', must be a whole number"),
    ("joints: []", "joints has 0 items, an arm has 1 to 16"),
    (f"joints: [{', '.join(JOINT.replace('a,', f'a{i},').replace('1,', f'{i},') for i in range(17))}]", "has 17 items"),
    (f"joints: [{JOINT}, {JOINT.replace('1', '2')}]", "joints[1].name is a, as an earlier joint's"),
    (f"joints: [{JOINT}, {JOINT.replace('a,', 'b,')}]", "joints[1].id is 1, as an earlier joint's"),
    (f"joints: [{JOINT.replace('1', '253')}]", "joints[0]: id is 253, must be 0 to 252"),
    (f"joints: [{JOINT.replace('1', 'one')}]", "joints[0].id is 'one', must be a whole number"),
    (f"joints: [{JOINT.replace('20', '-1')}]", "joints[0]: gravity is -1"),
    (f"joints: [{JOINT.replace('STS3215', 'STS3032')}]", "joints[0].servo is 'STS3032', must be one of STS3215"),
    (f"joints: [{JOINT.replace(', gravity: 20', '')}]", "field joints[0].gravity is missing"),
    (f"joints: [{JOINT}]", "settings[0].of names 'gripper', which is no joint"),
    ("registers: {lock: {at: 300, bytes: 1}}", "roles.torque is 'torque_enable', which is not among registers"),
    ("roles: {torque: lock}", "roles.goal is missing"),
    ("roles: {torgue: lock}", "roles: a key is 'torgue', must be one of torque, goal"),
    ("checked: {homing_offset: homing_offset}", "checked.range_min is missing"),
    ("checked: {homing: homing_offset}", "checked: a key is 'homing', must be one of homing_offset"),
    ("eeprom: {return_delay: 0}", "eeprom: return_delay is 'return_delay', which is not among registers"),
    ("eeprom: {return_delay_time: 256}", "eeprom.return_delay_time is 256, must be 0 to 255"),
    ("cleared: {phase: -1}", "cleared.phase is -1, must be 0 to 255"),
    ("settings: [{register: lock, value: 1}, {register: phase, value: 0}]", "settings must stand by rising address"),
    ("settings: [{register: acceleration}]", "settings[0]: acceleration needs either a value or `of` some joints"),
    ("settings: [{register: goal_velocity, value: 40000}]", "settings[0].value is 40000, must be -32767 to 32767"),
    ("settings: [{register: acceleration, value: 254}]", "speed is 'goal_velocity', which is not among settings"),
    ("speed: none", "speed is 'none', which is not among settings"),
    ("errors: {0: nothing}", "errors: a key is 0, must be 1 to 255"),
    ("watchdog: {value: 10, tripped: 255}", "watchdog needs its role and its values"),
    ("limits: {velocity: .inf, acceleration: 1, tracking: 1, gripper_tracking: 1}", "limits: velocity is inf"),
    ("limits: {velocity: 1, acceleration: -1, tracking: 1, gripper_tracking: 1}", "limits: acceleration is -1"),
    ("servo_limits: {velocity: 1, acceleration: 1, tracking: 0, gripper_tracking: 1}", "servo_limits: tracking is 0"),
    ("limits: {velocity: 1, acceleration: 1, tracking: 1}", "field limits.gripper_tracking is missing"),
    ("like: so102", "like is 'so102', must be one of koch, so100, so101"),
    ("title: x\ntitle: y", "line 1: title stands twice"),
]


@pytest.mark.parametrize(("text", "told"), BAD_DESCRIPTIONS, ids=[told[:40] for _, told in BAD_DESCRIPTIONS])
def test_descriptions_that_cannot_be_are_one_line_with_file_and_field(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text if text.startswith(("like", "title")) else f"like: so101\n{text}\n")
    load_arm.cache_clear()
    with pytest.raises(ConfigError) as caught:
        load_arm(str(file))
    said = str(caught.value)
    assert (
        said.startswith(f"{file}: ") and told in said and said.endswith("; mend the description") and "\n" not in said
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"acceleration": {"at": 42, "bytes": 1}}, "registers.goal_position.at is 42, where acceleration lies"),
        ({"lock": {"at": 256, "bytes": 1}}, "registers.lock.at is 256, beyond feetech0's last address"),
        ({"lock": {"at": 50, "bytes": 3}}, "registers.lock.bytes is 3, must be 1, 2 or 4"),
        ({"lock": {"at": 50, "bytes": 0}}, "registers.lock: bytes is 0, must be 1 to 15"),
        ({"present_block": {"at": 56, "bytes": 16}}, "registers.present_block: bytes is 16, must be 1 to 15"),
        ({"present_load": {"at": 71, "bytes": 2}}, "roles.load lies outside roles.block"),
        ({"goal_position": {"at": 42, "bytes": 2, "sign": "bit16"}}, "sign is bit16, which 2 bytes do not have"),
        ({"goal_position": {"at": 42, "bytes": 2, "sign": "minus"}}, "sign is 'minus', must be one of none, twos"),
    ],
)
def test_registers_that_cannot_be_are_one_line_with_the_field(change: dict[str, object], told: str) -> None:
    content = house_description("so101")
    content["registers"] |= change
    with pytest.raises(ConfigError) as caught:
        build(ArmDescription, content, "bad.yaml", ConfigError, "mend the description")
    assert told in str(caught.value)


def house_description(name: str) -> dict[str, Any]:
    return read_object(ARMS / f"{name}.yaml", ConfigError, "mend it")


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each value of a description."""
    yield at
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*at, key))


WRONG: tuple[Any, ...] = (None, "", "x", -1, 10**30, [], {}, True, float("nan"), float("inf"), [1], {"a": 1}, {1: 2})
"""Nothing that a number, a text, a list or an object of a description may be."""


@pytest.mark.parametrize("name", ["koch", "so101"])
def test_whatever_stands_in_a_field_a_description_is_an_arm_or_one_line(name: str) -> None:
    """What is accepted opens: its numbers are such that limits and the C core take them."""
    whole, refused = house_description(name), 0
    for at in places(whole):
        for wrong in WRONG:
            content = copy.deepcopy(whole)
            holder: Any = {"": content}
            way = ("", *at)
            for key in way[:-1]:
                holder = holder[key]
            holder[way[-1]] = wrong
            try:
                arm = build(ArmDescription, holder[""] if not at else content, "bad.yaml", ConfigError, "mend it")
            except ConfigError as error:
                assert str(error).startswith("bad.yaml: ") and "\n" not in str(error), error
                refused += 1
                continue
            settings = ControlSettings(
                limits_of(arm, any_calibration(arm), JointUnits(arm.joint_units[0])), 11_111_111, 1, "0" * 64
            )
            load_core().Pilot(settings)
    assert refused > 1000


PAGE = (Path(__file__).resolve().parents[2] / "docs" / "arms.md").read_text()


def test_the_page_explains_every_field() -> None:
    told = set(re.findall(r"`([a-z_0-9]+)`", PAGE))
    kinds = (ArmDescription, ArmJoint, RegisterPlace, ServoKind, Setting, Watchdog, MotionLimits)
    known = {item.name for kind in kinds for item in fields(kind)} - {"digest"}
    assert not known - told and {*ROLES, *OPTIONAL_ROLES, *LAST_ADDRESS, *JOINT_UNITS} <= told


def test_the_pages_arm_is_moved_by_its_description(tmp_path: Path) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.S)
    (tmp_path / "crane.yaml").write_text(example)
    arm = load_arm(str(tmp_path / "crane.yaml"))
    joints = [JointCalibration(name, number, 0, 0, 1000, 3000) for name, number in arm.ids.items()]
    save_joint_calibration(joints, tmp_path / "crane.json")
    words = ["--robot", str(tmp_path / "crane.yaml"), "--joints", str(tmp_path / "crane.json")]
    with emulator_process(tmp_path, "--arm", words[1], "--joints", words[3]) as emulator:
        assert main(["move", *words, "--port", str(emulator.port), "--joint", "elbow", "--to", "10"]) == 0
        goals = emulator.entries("goal")
    assert goals[-1]["goals"] == {"11": 2048, "12": 2048, "13": 2000 + int(10 * 4095 / 360), "14": 2048}


def test_an_arm_that_nobody_described_is_told_with_those_that_are() -> None:
    with pytest.raises(ConfigError, match="no arm is called 'so102'; known are koch, so100, so101, or give the path"):
        load_arm("so102")
    with pytest.raises(ConfigError, match="so102.yaml: no such description; give its path, or one of koch"):
        load_arm("so102.yaml")


def test_units_and_places_are_those_of_the_code_that_uses_them() -> None:
    assert set(JOINT_UNITS) == {units.value for units in JointUnits}
    assert inspect.signature(JointLimits).parameters["travel"].default == FASTEST


def test_the_descriptions_in_the_house_differ_in_digest_and_share_their_joints_names() -> None:
    arms = [load_arm(name) for name in arm_names()]
    assert len({arm.digest for arm in arms}) == len(arms)
    assert {arm.joint_names for arm in arms} == {SO101.joint_names}
    assert load_arm("so100").models == SO101.models and SO101.limits.tracking <= 60
    assert replace(SO101, name="so100", title="an SO-100", digest="").joints == load_arm("so100").joints
