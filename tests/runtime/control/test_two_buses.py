# SPDX-License-Identifier: Apache-2.0
"""Two Kochs as one arm of twelve joints on two ports, ids 1 to 6 on each: what concerns one side concerns both."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from tests.robot.test_koch_start import ScriptedPerson
from tests.runtime.control.control_rig import EVENT_S, KOCH, Rig, rig, write_joints

from vla_edge.bundle import open_bundle, write_manifest
from vla_edge.errors import BusError, ConfigError, JointCalibrationError
from vla_edge.robot.arm_description import ARMS, ArmDescription, load_arm
from vla_edge.robot.calibrate_joints import calibrate_joints
from vla_edge.robot.joint_calibration import load_joint_calibration, save_joint_calibration
from vla_edge.robot.port import ports_of
from vla_edge.robot.servo_bus import ServoBus
from vla_edge.robot.sim.emulator_process import EmulatorProcess, emulator_process
from vla_edge.robot.slow_motion import park_pose_path
from vla_edge.runtime.command import main
from vla_edge.runtime.control.flight_record import open_record
from vla_edge.runtime.control.recover import recover_alone

pytest.importorskip("vla_edge._core")
SIDES = ("left", "right")


def describe(path: Path, like: str = "koch", **fields: object) -> Path:
    """A description of two such arms, with these fields changed."""
    koch = yaml.safe_load((ARMS / f"{like}.yaml").read_text())
    joints = [
        {**joint, "name": f"{side}_{joint['name']}", "bus": bus}
        for bus, side in enumerate(SIDES)
        for joint in koch["joints"]
    ]
    settings = [
        {**setting, "of": {f"{side}_{name}": value for side in SIDES for name, value in setting["of"].items()}}
        if "of" in setting
        else setting
        for setting in koch["settings"]
    ]
    two = {"like": like, "name": "two_kochs", "title": "the pair of Kochs", "joints": joints, "settings": settings}
    path.write_text(yaml.safe_dump({**two, **fields}, sort_keys=False))
    return path


def two_kochs(folder: Path, like: str = "koch", **fields: object) -> ArmDescription:
    return load_arm(str(describe(folder / "two.yaml", like, **fields)))


@contextmanager
def pair(
    golden_bundle: Path, folder: Path, *flags: str, armed: bool = True, like: str = "koch", **fields: object
) -> Iterator[Rig]:
    """Control on both emulated sides, with a bundle of twelve joints."""
    arm = two_kochs(folder, like, **fields)
    bundle = folder / "bundle"
    shutil.copytree(golden_bundle, bundle)
    manifest = open_bundle(bundle).manifest
    twelve = replace(manifest.policy, state_dim=12, action_dim=12)
    write_manifest(bundle, replace(manifest, joints=arm.joint_names, policy=twelve))
    with rig(bundle, *flags, arm=str(folder / "two.yaml"), armed=armed) as made:
        yield made


def goals_of(side: EmulatorProcess) -> np.ndarray:
    """Every whole set of goals that a side's servos accepted, by rising id."""
    sets = [entry["goals"] for entry in side.entries("goal")]
    return np.array([[goals[str(servo)] for servo in KOCH.ids.values()] for goals in sets if len(goals) == 6])


def test_two_arms_are_armed_moved_held_parked_recorded_and_replayed_as_one(golden_bundle: Path, tmp_path: Path) -> None:
    """They park in the order that the description gives: the left one, then what is in no group."""
    left = [f"left_{name}" for name in KOCH.joint_names]
    with pair(golden_bundle, tmp_path, armed=False, parking=[left]) as made:
        made.store_parking_pose(2100)
        made.start_control()
        made.arm()
        assert all(
            {entry["id"] for entry in side.entries("torque") if entry["on"]} == set(range(1, 7)) for side in made.sides
        )
        made.move(40)
        assert made.ask("hold").word == "done"
        held = made.wait(lambda status: status["tick"] > status["goal_moved_tick"] + 5)
        made.wave()
        assert made.pass_ticks(10)["goals"] == held["goals"] and len(held["goals"]) == 12
        assert [tuple(goals_of(side)[-1]) for side in made.sides] == [held["goals"][:6], held["goals"][6:]]
        assert made.ask("park").word == "done"
        assert made.wait(lambda status: status["reason"] == "parked")["goals"] == (2100,) * 12
        goals = np.array([tick["goals"] for tick in made.ticks() if tick["state"] == "parking"])
        moves = np.abs(np.diff(goals, axis=0)).reshape(-1, 2, 6).max(axis=2) > 0
        assert moves.any(axis=0).all(), "both sides had a way to go"
        assert np.flatnonzero(moves[:, 0])[-1] <= np.flatnonzero(moves[:, 1])[0], (
            "the right one waited for the left one"
        )
        assert made.ask("torque_off").word == "done"
        for side in made.sides:
            assert {entry["id"] for entry in side.entries("torque") if not entry["on"]} == set(range(1, 7))
        made.stop()
        record = open_record(made.folder.record)
        assert record.header()["joints"] == made.description.joint_names and len(record.header()["joints"]) == 12
        replay = record.replay()
        assert replay["ticks"] > 40 and replay["differing"] == 0
        ticks = [tick for tick in made.ticks() if tick["read_result"] == 0]
        for side, joints in zip(made.sides, (slice(0, 6), slice(6, 12))):
            given = {
                tuple(answer["positions"].get(str(servo)) for servo in range(1, 7)) for answer in side.entries("answer")
            }
            assert {tuple(tick["position"][joints]) for tick in ticks} <= given


@pytest.mark.parametrize("side", [0, 1], ids=SIDES)
def test_a_side_whose_servo_is_silent_brakes_both_and_latches(golden_bundle: Path, tmp_path: Path, side: int) -> None:
    with pair(golden_bundle, tmp_path) as made:
        made.move(8)
        made.sides[side].event("dead 4")
        status = made.wait(lambda status: status["latched"])
        assert (status["state"], status["reason"]) == ("hold", "reads_lost")
        silent = made.wait(lambda status: status["joint"] == 6 * side + 3)
        assert made.description.joint_names[silent["joint"]] == f"{SIDES[side]}_wrist_flex"
        still = made.wait(lambda later: later["tick"] > status["tick"] + status["rest_ticks"])
        assert made.wait(lambda later: later["tick"] > still["tick"] + 10)["goals"] == still["goals"]


def test_an_overload_on_the_left_brakes_both_and_names_the_joint(golden_bundle: Path, tmp_path: Path) -> None:
    with pair(golden_bundle, tmp_path) as made:
        made.move(8)
        made.sides[0].event("overload 3")
        status = made.wait(lambda status: status["reason"] == "alert")
        assert status["state"] == "fault" and made.description.joint_names[status["joint"]] == "left_elbow_flex"
        made.wait(lambda later: later["tick"] > status["tick"] + status["rest_ticks"] + 5)
        for side in made.sides:
            assert len({tuple(goal) for goal in goals_of(side)[-3:]}) == 1
        assert made.ask("recover").word == "done"
        made.wait(lambda status: status["state"] == "hold")
        assert [entry["id"] for entry in made.sides[0].entries("reboot")] == [3] and not made.sides[1].entries("reboot")


@pytest.mark.parametrize("side", [0, 1], ids=SIDES)
def test_an_unplugged_side_is_a_fault_in_which_the_other_one_is_slowed_down(
    golden_bundle: Path, tmp_path: Path, side: int
) -> None:
    with pair(golden_bundle, tmp_path) as made:
        made.move(8)
        made.sides[side].event("unplug")
        _, message = made.control.communicate(timeout=EVENT_S)
        assert made.control.returncode == 2
        assert f"the adapter at {made.sides[side].port} is gone; plug it in" in message.splitlines()[-1]
        ticks = made.ticks()
        noticed = next(index for index, tick in enumerate(ticks) if tick["reason"] == "unplugged")
        assert all(tick["state"] == "fault" and tick["write"] for tick in ticks[noticed:])
        other = 1 - side
        joints = slice(6 * other, 6 * other + 6)
        assert tuple(goals_of(made.sides[other])[-1]) == tuple(ticks[-1]["goals"][joints])
        assert len({tuple(tick["goals"][joints]) for tick in ticks[-3:]}) == 1
        assert open_record(made.folder.record).replay()["differing"] == 0


def test_one_guardian_makes_both_sides_stand_still(golden_bundle: Path, tmp_path: Path) -> None:
    """Two SO-101, whose servos have no watchdog."""
    with pair(golden_bundle, tmp_path, like="so101") as made:
        made.move(8)
        made.control.kill()
        assert made.control.wait(EVENT_S) != 0
        _, message = made.control.communicate(timeout=EVENT_S)  # it ends with the guardian, which has its stderr too
        assert "guardian" in message
        for side in made.sides:
            stood = [
                tuple(answer["positions"].get(str(servo)) for servo in range(1, 7)) for answer in side.entries("answer")
            ]
            assert tuple(goals_of(side)[-1]) in stood[-8:]


def test_what_cannot_be_is_refused_in_one_line(tmp_path: Path) -> None:
    arm = two_kochs(tmp_path)
    for port, said in {
        "a": "--port a is 1, the pair of Kochs has its servos on two; give --port LEFT,RIGHT",
        "a,b,c": "--port a,b,c is 3, the pair of Kochs has its servos on two; give --port LEFT,RIGHT",
        f"{tmp_path}/a,{tmp_path}/./a": "is the same port twice; give --port LEFT,RIGHT",
    }.items():
        with pytest.raises(BusError) as refused:
            ServoBus(port, arm)
        assert said in str(refused.value) and "\n" not in str(refused.value)
    with pytest.raises(BusError, match="--port a,b is 2, a Koch has its servos on one; give the follower's"):
        ports_of("a,b", KOCH, KOCH.buses)
    koch = yaml.safe_load((ARMS / "koch.yaml").read_text())["joints"]
    sided = [{**joint, "name": f"left_{joint['name']}"} for joint in koch]
    for joints, said in (
        ([*sided[:5], {**koch[5], "bus": 1}], "on bus 1 of two it begins with right_"),
        ([{**sided[0], "bus": 1}, *sided[1:]], "those on bus 0 stand first"),
        ([*sided[:5], {**koch[5], "bus": 2}], "bus is 2, must be 0 to 1"),
    ):
        with pytest.raises(ConfigError, match=said):
            load_arm(str(describe(tmp_path / f"{said[:8]}.yaml", joints=joints)))
    for parking, said in (
        ([["left_nose"]], "parking names 'left_nose', which is no joint"),
        ([["left_gripper"], ["left_gripper"]], "parking names left_gripper twice"),
        ([[]], "parking has an empty group"),
    ):
        with pytest.raises(ConfigError, match=said):
            load_arm(str(describe(tmp_path / f"{said[-5:]}.yaml", parking=parking)))


def test_move_parks_the_groups_one_behind_the_other(tmp_path: Path) -> None:
    arm = two_kochs(tmp_path, parking=[[f"right_{name}" for name in KOCH.joint_names]])
    joints = tmp_path / "two.json"
    write_joints(joints, arm)
    joints.with_suffix(".park.json").write_text(json.dumps(dict.fromkeys(arm.joint_names, 2080)))
    (tmp_path / "right").mkdir()
    words = ["--arm", str(tmp_path / "two.yaml"), "--joints", str(joints)]
    with (
        emulator_process(tmp_path, *words) as left,
        emulator_process(tmp_path / "right", *words, "--bus", "1") as right,
    ):
        flags = ["--robot", str(tmp_path / "two.yaml"), "--port", f"{left.port},{right.port}", "--joints", str(joints)]
        assert main(["move", "--park", *flags]) == 0
        moved = [
            [entry["t"] for entry in side.entries("goal") if entry["goals"]["1"] not in (2048, 2080)]
            for side in (left, right)
        ]
        assert (
            max(moved[1]) < min(moved[0]) and goals_of(left)[-1].tolist() == goals_of(right)[-1].tolist() == [2080] * 6
        )


def test_both_sides_are_calibrated_at_once_and_recover_is_asked_of_the_right_one(tmp_path: Path) -> None:
    arm = two_kochs(tmp_path)
    (tmp_path / "right").mkdir()
    words = ["--arm", str(tmp_path / "two.yaml"), "--bus"]
    ends = [dict.fromkeys((2, 3, 4, 6), (700 + 100 * side, 3400)) for side in range(2)]
    with emulator_process(tmp_path, *words, "0") as left, emulator_process(tmp_path / "right", *words, "1") as right:
        port = f"{left.port},{right.port}"
        hands = [ScriptedPerson(side, [2048] * 6, ends[k]) for k, side in enumerate((left, right))]

        class Both:
            def ask(self, text: str) -> None:
                for hand in hands:
                    hand.ask(text)

            def show(self, ranges: Mapping[str, tuple[int, int, int]]) -> bool:
                return all(hand.show(ranges) for hand in hands)

        bus = ServoBus(port, arm)
        try:
            joints = calibrate_joints(bus, Both(), lambda _: None)
        finally:
            bus.close()
        assert tuple(joint.name for joint in joints) == arm.joint_names
        offset = [side * 100 for side in (0, 1)]
        for side, name in enumerate(SIDES):
            lift = next(joint for joint in joints if joint.name == f"{name}_shoulder_lift")
            assert lift.range_max - lift.range_min == 2700 - offset[side]
        save_joint_calibration(joints, tmp_path / "two.json")
        found = load_joint_calibration(tmp_path / "two.json", arm)
        right.event("overload 3")
        assert recover_alone(arm, port, found) == ["right_elbow_flex"]
        assert [entry["id"] for entry in right.entries("reboot")] == [3] and not left.entries("reboot")


def test_joints_of_one_id_on_two_buses_do_not_mix(tmp_path: Path) -> None:
    arm = two_kochs(tmp_path)
    (tmp_path / "right").mkdir()
    places = [[str(1000 * side + 1000 + place) for place in range(6)] for side in range(2)]
    words = [
        ["--arm", str(tmp_path / "two.yaml"), "--bus", str(side), "--positions", *places[side]] for side in range(2)
    ]
    with emulator_process(tmp_path, *words[0]) as left, emulator_process(tmp_path / "right", *words[1]) as right:
        bus = ServoBus(f"{left.port},{right.port}", arm)
        try:
            found = bus.read_all(arm.at("position"))
            assert [str(count) for count in found.values()] == [*places[0], *places[1]]
            bus.write("right_gripper", arm.register("goal_current"), 321)
            assert bus.read("left_gripper", arm.register("goal_current")) != 321
            assert bus.ping("left_elbow_flex")["left_elbow_flex"] is not None
        finally:
            bus.close()


def test_lerobots_calibrations_of_the_two_arms_are_read_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arm = two_kochs(tmp_path)
    folder = tmp_path / "robots" / "koch_follower"
    folder.mkdir(parents=True)
    monkeypatch.setenv("HF_LEROBOT_CALIBRATION", str(tmp_path))
    write_joints(folder / "pair_left.json", KOCH)
    with pytest.raises(JointCalibrationError, match="lerobot:pair_right: LeRobot has no calibration"):
        load_joint_calibration(Path("lerobot:pair"), arm)
    write_joints(folder / "pair_right.json", KOCH)
    text = json.loads((folder / "pair_right.json").read_text())
    text["gripper"]["range_max"] = 3000
    (folder / "pair_right.json").write_text(json.dumps(text))
    found = load_joint_calibration(Path("lerobot:pair"), arm)
    assert tuple(joint.name for joint in found.joints) == arm.joint_names
    assert found.joint("right_gripper").range_max == 3000 != found.joint("left_gripper").range_max
    assert park_pose_path(found) == folder / "pair_{left,right}.park.json"
