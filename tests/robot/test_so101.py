# SPDX-License-Identifier: Apache-2.0
"""The SO-101 by its description alone: what its servos must be before any torque, its calibration and units; and an arm
of seven joints that only a description knows."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from tests.robot.test_koch_start import ScriptedPerson

from vla_edge.contract import JointCalibration
from vla_edge.errors import BusError, JointCalibrationError
from vla_edge.robot.arm_description import ArmDescription, load_arm
from vla_edge.robot.calibrate_joints import calibrate_joints
from vla_edge.robot.joint_calibration import (
    JointCalibrations,
    JointUnits,
    counts_from_unit,
    load_joint_calibration,
    save_joint_calibration,
    unit_from_counts,
)
from vla_edge.robot.servo_arm import ArmOptions, ServoArm, open_arm
from vla_edge.robot.servo_bus import ServoBus
from vla_edge.robot.sim.bus_faults import Faults
from vla_edge.robot.sim.emulated_bus import EmulatedBus
from vla_edge.robot.sim.emulator import Emulator, Terminal, servos_of
from vla_edge.robot.sim.emulator_process import EmulatorProcess, emulator_process
from vla_edge.robot.sim.plant import IdealPlant

pytest.importorskip("vla_edge._core")

SO101 = load_arm("so101")
GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "so101_units.json"
CALIBRATION = JointCalibrations(
    tuple(
        JointCalibration(
            name, i + 1, 0, 40 * i - 60, 0 if name == "wrist_roll" else 900, 4095 if name == "wrist_roll" else 3200
        )
        for i, name in enumerate(SO101.joint_names)
    ),
    "arm.json",
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_joint_calibration(CALIBRATION.joints, tmp_path / "arm.json")
    return tmp_path / "arm.json"


@contextmanager
def emulated(folder: Path, file: Path, *words: str) -> Iterator[EmulatorProcess]:
    with emulator_process(folder, "--arm", "so101", "--joints", str(file), *words) as emulator:
        yield emulator


def start(emulator: EmulatorProcess, calibration: JointCalibrations = CALIBRATION) -> ServoArm:
    return open_arm(ArmOptions(SO101, str(emulator.port), calibration))


def test_a_good_arm_passes_is_configured_and_torque_locks_its_eeprom(tmp_path: Path, file: Path) -> None:
    with emulated(tmp_path, file, "--set", "2:return_delay_time=250", "--set", "4:phase=28") as emulator:
        arm = start(emulator)
        assert arm.joints == SO101.joint_names
        assert set(arm.supply) == {(90, 135)}, "found on 12 V"
        assert not emulator.entries("goal", "torque")
        before = arm.read().positions
        arm.set_torque(True)
        arm.write_goals([count + 20 for count in before])
        while any(abs(now - was) < 15 for now, was in zip(arm.read().positions, before)):
            pass
        arm.set_torque(False)
        arm.close()
        bus = ServoBus(str(emulator.port), SO101)
        held = {
            name: bus.read_all(SO101.register(name)) for name in ("return_delay_time", "phase", "p_coefficient", "lock")
        }
        assert set(held["return_delay_time"].values()) == {0} and not any(
            value & 0x10 for value in held["phase"].values()
        )
        assert set(held["p_coefficient"].values()) == {16} and set(held["lock"].values()) == {0}
        assert bus.read("gripper", SO101.register("max_torque_limit")) == 500
        bus.close()
    first = emulator.entries("goal")[0]
    assert first["goals"] == {str(i + 1): count for i, count in enumerate(before)}, "torque begins where the arm is"


BAD_SERVOS = [
    (["--set", "3:model_number=1284"], ["elbow_flex", "1284", "STS3215 (777)"]),
    (["--set", "4:firmware_minor_version=9"], ["wrist_flex", "3.9", "the others have 3.10", "FD software"]),
    (["--missing", "5"], ["wrist_roll", "id 5", "cable"]),
    (
        ["--set", "1:max_voltage_limit=80"],
        ["shoulder_pan", "12.0 V", "its own limit is 8.0 V", "switch the supply off"],
    ),
    (["--set", "2:operating_mode=1"], ["shoulder_lift", "operating mode 1", "calibrate-joints"]),
    (["--set", "4:homing_offset=-900"], ["wrist_flex", "homing_offset is -900", "arm.json", "calibrate-joints"]),
    (["--set", "6:max_position_limit=3201"], ["gripper", "range_max is 3201", "3200"]),
]


@pytest.mark.parametrize(("arguments", "words"), BAD_SERVOS, ids=[" ".join(words[:2]) for _, words in BAD_SERVOS])
def test_a_wrong_servo_is_one_line_and_no_torque(
    tmp_path: Path, file: Path, arguments: list[str], words: list[str]
) -> None:
    with emulated(tmp_path, file, *arguments) as emulator:
        with pytest.raises((BusError, JointCalibrationError)) as caught:
            start(emulator)
        assert not emulator.entries("goal", "torque", "write")
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_an_arm_of_another_language_is_named_with_the_flag_that_means_it(tmp_path: Path, file: Path) -> None:
    with emulated(tmp_path, file) as emulator:
        with pytest.raises(
            BusError, match="as a Koch's do, but .* say --robot so100 or --robot so101, or give a Koch's port"
        ):
            open_arm(ArmOptions(load_arm("koch"), str(emulator.port), CALIBRATION))
        assert not emulator.entries("goal", "torque", "write")
    (tmp_path / "koch").mkdir()
    with emulator_process(tmp_path / "koch") as emulator:
        with pytest.raises(BusError, match="as an SO-101's do, but .* say --robot koch, or give an SO-101's port"):
            start(emulator)
        assert not emulator.entries("goal", "torque", "write")


ENDS = {1: (700, 3400), 2: (900, 3100), 3: (1000, 3000), 4: (1100, 2900), 6: (2000, 3300)}


def calibrated(emulator: EmulatorProcess, middle: list[int], ends: dict[int, tuple[int, int]]) -> JointCalibrations:
    bus = ServoBus(str(emulator.port), SO101)
    try:
        person = ScriptedPerson(emulator, middle, ends)
        return JointCalibrations(tuple(calibrate_joints(bus, person, lambda _: None)), "made.json")
    finally:
        bus.close()


def test_a_guided_calibration_is_lerobots_and_outlives_the_power(tmp_path: Path) -> None:
    """The servos are locked and hold other numbers at the start; a joint whose range crosses the encoder's end is as
    good as another. An offset has eleven bits: 4095 - 2047 is one too many, and the middle one count beside it."""
    middle = [1000, 4095, 60, 2500, 4094, 2800]
    locked = [word for servo in range(1, 7) for word in ("--set", f"{servo}:lock=1")]
    other = ["--set", "5:homing_offset=-123", "--set", "2:min_position_limit=500", "--set", "3:operating_mode=1"]
    with emulator_process(tmp_path, "--arm", "so101", *locked, *other) as emulator:
        made = calibrated(emulator, middle, ENDS)
        assert not [entry for entry in emulator.entries("torque") if entry["on"]] and not emulator.entries("goal")
        assert [joint.homing_offset for joint in made.joints] == [min(counts - 2047, 2047) for counts in middle]
        ranges = {joint.id: (joint.range_min, joint.range_max) for joint in made.joints}
        assert ranges == ENDS | {5: (0, 4095)}, "wrist_roll alone has a whole turn"
        for servo in ranges:
            emulator.event(f"reboot {servo}")
        start(emulator, made).close()


def test_a_joint_that_was_not_moved_is_named(tmp_path: Path) -> None:
    with emulator_process(tmp_path, "--arm", "so101") as emulator:
        with pytest.raises(JointCalibrationError, match="wrist_flex moved only"):
            calibrated(emulator, [2047] * 6, {servo: ends for servo, ends in ENDS.items() if servo != 4})


def lerobot_units(joint: JointCalibration, units: JointUnits, ticks: np.ndarray) -> np.ndarray:
    """`MotorsBus._normalize` of LeRobot 0.6.1."""
    low, high = joint.range_min, joint.range_max
    inside = np.clip(ticks, low, high)
    if joint.grips:
        return (inside - low) / (high - low) * 100
    if units is JointUnits.DEGREES:
        return (ticks - (low + high) / 2) * 360 / 4095
    return (inside - low) / (high - low) * 200 - 100


def lerobot_ticks(joint: JointCalibration, units: JointUnits, values: np.ndarray) -> np.ndarray:
    """`MotorsBus._unnormalize` of LeRobot 0.6.1: it cuts towards zero."""
    low, high = joint.range_min, joint.range_max
    if joint.grips:
        return np.trunc(np.clip(values, 0, 100) / 100 * (high - low) + low)
    if units is JointUnits.DEGREES:
        return np.trunc(values * 4095 / 360 + (low + high) / 2)
    return np.trunc((np.clip(values, -100, 100) + 100) / 200 * (high - low) + low)


@pytest.mark.parametrize("units", [JointUnits(name) for name in SO101.joint_units])
def test_units_are_lerobots_both_ways_over_a_hundred_thousand_ticks(units: JointUnits) -> None:
    """Read back exactly. Written, a value that lies on a whole count can fall to either side of it by its last bit."""
    rng = np.random.default_rng(7)
    for joint in CALIBRATION.joints:
        ticks = rng.integers(0, 4096, 100_000 // 6)
        wanted = lerobot_units(joint, units, ticks)
        ours = np.array([unit_from_counts(joint, units, int(tick)) for tick in ticks])
        np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-9)
        values = rng.uniform(-130, 130, len(ticks))
        written = np.array([counts_from_unit(joint, units, float(value), SO101.truncates) for value in values])
        np.testing.assert_array_equal(written, lerobot_ticks(joint, units, values))


def test_units_are_what_lerobot_itself_computed() -> None:
    """tests/golden/so101_units.json: FeetechMotorsBus of LeRobot 0.6.1 on both units."""
    golden = json.loads(GOLDEN.read_text())
    for row in golden["rows"]:
        units = JointUnits(row["units"])
        joint = JointCalibration(**row["joint"])
        ours = [unit_from_counts(joint, units, tick) for tick in row["ticks"]]
        np.testing.assert_allclose(ours, row["read"], rtol=0, atol=1e-9)
        assert [counts_from_unit(joint, units, value, True) for value in row["values"]] == row["written"]


@pytest.mark.parametrize("folder", ["so_follower", "so101_follower"])
def test_lerobots_calibration_is_found_by_its_id_in_both_of_its_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    monkeypatch.setenv("HF_LEROBOT_CALIBRATION", str(tmp_path))
    for place in ("so_follower", "so101_follower", "so100_follower"):
        (tmp_path / "robots" / place).mkdir(parents=True)
    save_joint_calibration(CALIBRATION.joints, tmp_path / "robots" / folder / "blue.json")
    assert load_joint_calibration(Path("lerobot:blue"), SO101).joints == CALIBRATION.joints
    with pytest.raises(JointCalibrationError, match="no calibration of an SO-101 with that id; there are blue"):
        load_joint_calibration(Path("lerobot:red"), SO101)
    other = "so101_follower" if folder == "so_follower" else "so_follower"
    save_joint_calibration(CALIBRATION.joints, tmp_path / "robots" / other / "blue.json")
    with pytest.raises(JointCalibrationError, match="LeRobot has .*blue.json and .*blue.json; give the path"):
        load_joint_calibration(Path("lerobot:blue"), SO101)


SEVEN = """
like: so101
name: seven
title: a made-up arm
lerobot_folders: []
joints:
  - {name: base, id: 11, servo: STS3215, mode: 0, gravity: 20}
  - {name: shoulder, id: 12, servo: STS3215, mode: 0, gravity: 20}
  - {name: upper_roll, id: 13, servo: STS3215, mode: 0, gravity: 20}
  - {name: elbow, id: 14, servo: STS3215, mode: 0, gravity: 20}
  - {name: forearm_roll, id: 15, servo: STS3215, mode: 0, gravity: 20, full_turn: true}
  - {name: wrist, id: 16, servo: STS3215, mode: 0, gravity: 20}
  - {name: left_gripper, id: 17, servo: STS3215, mode: 0, gravity: 60}
settings: [{register: acceleration, value: 254}, {register: goal_velocity, value: 820}]
"""


@contextmanager
def seven_servos(folder: Path, arm: ArmDescription) -> Iterator[Path]:
    """A port behind which seven servos answer, in a thread of this process."""
    servos = servos_of(arm, None, [2048] * 7)
    faults = Faults(0, (5.0, 120.0))
    plant = IdealPlant([servo.raw for servo in servos])
    terminal = Terminal(folder / "port")
    emulator = Emulator(terminal, EmulatedBus(servos, plant, faults, lambda entry: None), plant, faults)
    thread = threading.Thread(target=emulator.run, args=([], None), daemon=True)
    thread.start()
    try:
        yield folder / "port"
    finally:
        emulator.apply(("quit",))
        thread.join(240)


def test_an_arm_of_seven_joints_is_a_description_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vla_edge.robot.servo_arm.READ_S", 5.0)  # these servos answer when the machine lets them
    (tmp_path / "seven.yaml").write_text(SEVEN)
    arm = load_arm(str(tmp_path / "seven.yaml"))
    joints = tuple(JointCalibration(name, number, 0, 0, 0, 4095) for name, number in arm.ids.items())
    with seven_servos(tmp_path, arm) as port:
        follower = open_arm(ArmOptions(arm, str(port), JointCalibrations(joints, "seven.json")))
        try:
            follower.set_torque(True)
            follower.write_goals([2048 + 10 * i for i in range(1, 8)])
            while any(abs(now - 2048 - 10 * i) > 3 for i, now in enumerate(follower.read().positions, 1)):
                pass
            follower.set_torque(False)
        finally:
            follower.close()
