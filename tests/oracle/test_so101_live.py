# SPDX-License-Identifier: Apache-2.0
"""LeRobot's own SO-101 driver on the emulated servos: it configures, calibrates, reads and moves them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.robot.test_emulator import wait_for

from vla_edge.robot.sim.bodies.so101_body import SO101
from vla_edge.robot.sim.emulator_process import EmulatorProcess, emulator_process
from vla_edge.robot.sim.render import rendering_fault
from vla_edge.robot.sim.sim_process import SimProcess
from vla_edge.robot.sim.simulated_arm import SimOptions, SimulatedArm
from vla_edge.robot.sim.simulator import TipAtGoals
from vla_edge.trials.reach_expert import expert_goal

FAULT = rendering_fault()
Ask = Callable[..., dict[str, Any]]
JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
CALIBRATION = {
    name: {"id": i + 1, "drive_mode": 0, "homing_offset": offset, "range_min": low, "range_max": high}
    for i, (name, offset, low, high) in enumerate(
        zip(
            JOINTS,
            (-1200, 300, 2047, -2047, 15, 0),
            (780, 840, 860, 900, 0, 2000),
            (3300, 3200, 3100, 3150, 4095, 3400),
        )
    )
}
POSITIONS = (2000, 1900, 2200, 2050, 100, 2100)


@pytest.fixture
def emulator(tmp_path: Path) -> Iterator[EmulatorProcess]:
    (tmp_path / "mine.json").write_text(json.dumps(CALIBRATION))
    # Factory settings that LeRobot changes, a homing offset it must find again, and positions that count beyond a turn.
    settings = (
        "2:return_delay_time=250",
        "3:p_coefficient=32",
        "4:phase=28",
        "5:operating_mode=1",
        "6:overload_torque=80",
    )
    words = [word for setting in settings for word in ("--set", setting)]
    with emulator_process(
        tmp_path, "--arm", "so101", "--joints", str(tmp_path / "mine.json"), *words, "--positions", *map(str, POSITIONS)
    ) as process:
        yield process


@pytest.fixture
def arm(emulator: EmulatorProcess, lerobot: Ask) -> Iterator[Ask]:
    opened = lerobot("so101_open", port=emulator.port, id="mine", folder=emulator.port.parent)
    if "missing" in opened:
        pytest.skip(f"LeRobot's interpreter has no {opened['missing']}: pip install it there")
    assert opened["calibrated"]
    yield lerobot
    lerobot("so101_close")


def registers(emulator: EmulatorProcess) -> dict[str, dict[str, int]]:
    emulator.event("dump")
    return dict(emulator.entries("registers")[-1]["servos"])


def test_lerobot_configures_and_reads_the_servos(arm: Ask, emulator: EmulatorProcess) -> None:
    held = registers(emulator)
    for servo, all_of_it in held.items():
        told = {name: all_of_it[name] for name in ("return_delay_time", "acceleration", "maximum_acceleration")}
        assert told == {"return_delay_time": 0, "acceleration": 254, "maximum_acceleration": 254}
        assert [all_of_it[f"{gain}_coefficient"] for gain in "pid"] == [16, 0, 32]
        assert all_of_it["operating_mode"] == 0 and not all_of_it["phase"] & 0x10
        assert (all_of_it["torque_enable"], all_of_it["lock"]) == (1, 1)
        protected = [all_of_it[name] for name in ("max_torque_limit", "protection_current", "overload_torque")]
        assert protected == ([500, 250, 25] if servo == "6" else [1000, 500, 80])
    assert arm("so101_calibration")["joints"] == CALIBRATION
    assert list(arm("so101_read", register="Present_Position")["values"].values()) == list(POSITIONS)
    assert set(arm("so101_read", register="Present_Voltage")["values"].values()) == {120}
    seen = arm("so101_observe")["joints"]
    low, high = CALIBRATION["shoulder_pan"]["range_min"], CALIBRATION["shoulder_pan"]["range_max"]
    assert seen["shoulder_pan.pos"] == pytest.approx((POSITIONS[0] - (low + high) / 2) * 360 / 4095)
    assert seen["gripper.pos"] == pytest.approx(100 * (POSITIONS[5] - 2000) / 1400)


def test_lerobot_moves_the_servos_and_truncates_its_goals(arm: Ask, emulator: EmulatorProcess) -> None:
    wish = {"shoulder_pan": 10.0, "shoulder_lift": -7.3, "elbow_flex": 3.21, "wrist_flex": -1.5, "wrist_roll": -120.0}
    arm("so101_send", action={f"{name}.pos": value for name, value in {**wish, "gripper": 40.0}.items()})
    goals = {}
    for name, value in wish.items():
        joint = CALIBRATION[name]
        goals[str(joint["id"])] = int(value * 4095 / 360 + (joint["range_min"] + joint["range_max"]) / 2)
    goals["6"] = 2000 + int(0.4 * 1400)
    assert emulator.entries("goal")[-1]["goals"] == goals
    wait_for(lambda: list(arm("so101_read", register="Present_Position")["values"].values()) == list(goals.values()))
    assert set(arm("so101_read", register="Moving")["values"].values()) == {0}


@pytest.mark.skipif(FAULT is not None, reason=str(FAULT))
def test_lerobot_moves_the_simulated_so101_over_a_cube_in_its_own_degrees(lerobot: Ask, tmp_path: Path) -> None:
    """Its driver, our physics: where our kinematics put the tip, LeRobot's degrees bring it."""
    process = SimProcess(tmp_path, scene=3, height=96, width=128, arm="so101")
    body, arm = SO101, SimulatedArm(process.new_scene(), SimOptions(96, 128))
    child = subprocess.Popen([sys.executable, *process.command()], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    try:
        assert json.loads(child.stdout.readline())["port"] == str(process.port)
        opened = lerobot("so101_open", port=process.port, id=process.calibration.stem, folder=tmp_path)
        if "missing" in opened:
            pytest.skip(f"LeRobot's interpreter has no {opened['missing']}: pip install it there")
        assert opened["calibrated"]
        goal = body.units(expert_goal(arm, arm.scene, "green"))
        action = {f"{name}.pos": float(value) for name, value in zip(body.joints, goal)}
        rest = body.units(expert_goal(arm, arm.scene, "green") - arm.sag(body.radians(goal)))

        def over_the_cube() -> bool:
            lerobot("so101_send", action=action)
            seen = lerobot("so101_observe")["joints"]
            return max(abs(seen[f"{name}.pos"] - value) for name, value in zip(body.joints, rest)) < 1.0

        wait_for(over_the_cube)
        for _ in range(TipAtGoals.GOALS):
            lerobot("so101_send", action=action)
        lerobot("so101_close")
        child.send_signal(signal.SIGTERM)
        told = json.loads(child.communicate(timeout=240)[0].splitlines()[-1])
    finally:
        child.kill()
        child.wait()
    # A degree at each joint is 1.5 cm at the tip.
    assert told["tip_to_cube_m"]["green"] < 0.015
    assert min(told["tip_to_cube_m"], key=told["tip_to_cube_m"].__getitem__) == "green"


def test_lerobot_sets_new_offsets_and_the_servos_show_the_middle(arm: Ask, emulator: EmulatorProcess) -> None:
    """Its half-turn homing: offsets to 0, read, offset = position - 2047, which then is what the servo shows."""
    told = arm("so101_recalibrate")
    for name, place in zip(JOINTS, POSITIONS):
        # Encoder counts within the turn, as they show without an offset; the sign bit is bit 11.
        assert told["offsets"][name] == (place + CALIBRATION[name]["homing_offset"]) % 4096 - 2047
    assert set(told["middle"].values()) == {2047}
    assert arm("so101_calibration")["joints"] == CALIBRATION
    assert list(arm("so101_read", register="Present_Position")["values"].values()) == list(POSITIONS)


def test_lerobot_refuses_servos_of_two_firmwares(lerobot: Ask, tmp_path: Path) -> None:
    with emulator_process(tmp_path, "--arm", "so101", "--set", "3:firmware_minor_version=9") as emulator:
        try:
            opened = lerobot("so101_open", port=emulator.port, id="mine", folder=tmp_path)
        except AssertionError as told:
            assert "different firmware versions" in str(told)
        else:
            pytest.skip(f"LeRobot's interpreter has no {opened['missing']}: pip install it there")
