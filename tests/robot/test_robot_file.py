# SPDX-License-Identifier: Apache-2.0
"""robot.yaml: what it fills in, what stands above it, and how `setup` finds and writes it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from vla_edge.command_parser import CommandParser
from vla_edge.errors import ConfigError, UsageError
from vla_edge.robot import setup_robot
from vla_edge.robot.arm_description import load_arm
from vla_edge.robot.robot_file import add_robot_file, read_robot_file
from vla_edge.robot.setup_robot import Found, ask_nobody, what_answers
from vla_edge.robot.sim.emulator_process import emulator_process
from vla_edge.runtime.command import main

WHOLE = """
robot: koch
port: /dev/arm
joints: arm.json
joint_units: degrees
cameras: {laptop: "/dev/video0,640x480", observation.images.phone: "2"}
bundle: my bundle
task: pick it up
hz: 50
"""
EXAMPLES = Path(__file__).parents[2] / "examples"
BUNDLE, SO101_JOINTS = EXAMPLES / "reach-cube" / "bundle", EXAMPLES / "simulated-so101" / "calibration.json"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def parsed(words: Sequence[str], by_itself: bool = True) -> dict[str, object]:
    parser = CommandParser("vla-runtime run", "")
    for flag in ("--robot", "--port", "--joints", "--bundle", "--task", "--hz"):
        parser.add_argument(flag, required=flag == "--bundle")
    parser.add_argument("--camera", action="append", default=[])
    add_robot_file(parser, by_itself)
    return vars(parser.parse_args(words))


def test_a_robot_file_gives_what_the_command_line_leaves_out_and_says_so(folder: Path, capsys) -> None:
    (folder / "robot.yaml").write_text(WHOLE)
    found = parsed(["--port", "/dev/other", "--camera", "phone=7"])
    assert (found["port"], found["joints"], found["bundle"]) == ("/dev/other", "arm.json", "my bundle")
    assert found["camera"] == ["laptop=/dev/video0,640x480", "phone=7"]
    told = capsys.readouterr().err
    assert told.startswith("robot.yaml: --robot koch --joints arm.json ") and "--bundle 'my bundle'" in told
    assert "/dev/arm" not in told and "joint-units" not in told


def test_its_paths_are_relative_to_the_file(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "other.yaml").write_text(WHOLE)
    assert dict(read_robot_file(Path("sub/other.yaml")))["--joints"] == "sub/arm.json"
    assert parsed(["--robot-file", "sub/other.yaml"])["bundle"] == "sub/my bundle"
    assert parsed(["--robot-file=sub/other.yaml"], by_itself=False)["task"] == "pick it up"
    (folder / "sub" / "a:b.mp4").touch()
    (folder / "sub" / "2").touch()
    (folder / "sub" / "films.yaml").write_text(
        "port: arm\ncameras: {a: 'a:b.mp4,30fps', b: 'file:c.mp4', c: '2', d: d}"
    )
    pairs = read_robot_file(Path("sub/films.yaml"))
    assert [value for _, value in pairs] == ["sub/arm", "a=sub/a:b.mp4,30fps", "b=file:sub/c.mp4", "c=2", "d=d"]


def test_a_simulated_arm_takes_nothing_of_the_real_one(folder: Path) -> None:
    (folder / "robot.yaml").write_text(WHOLE)
    found = parsed(["--robot", "sim"])
    assert found["port"] is None and found["camera"] == [] and found["task"] == "pick it up"


def test_a_command_that_is_no_persons_reads_none_by_itself(folder: Path) -> None:
    (folder / "robot.yaml").write_text(WHOLE)
    with pytest.raises(UsageError, match="missing: --bundle"):
        parsed([], by_itself=False)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("prot: /dev/x", "prot"),
        ("cameras: [a]", "cameras"),
        ("hz: fast", "hz"),
        ("a: [", "not valid YAML"),
        ("", "must be an object"),
    ],
)
def test_a_wrong_robot_file_is_one_line_with_the_field(folder: Path, text: str, told: str) -> None:
    (folder / "robot.yaml").write_text(text)
    with pytest.raises(ConfigError, match=told):
        parsed([])


def test_setup_finds_the_follower_and_leaves_nothing_to_type_twice(folder: Path, capsys, monkeypatch) -> None:
    with emulator_process(folder) as emulator:
        monkeypatch.setattr(setup_robot, "serial_ports", lambda: ["/dev/none", str(emulator.port)])
        monkeypatch.setattr(setup_robot, "list_v4l2", lambda: [("/dev/video0", "cam"), ("/dev/video2", "cam")])
        monkeypatch.setenv("HF_LEROBOT_HOME", str(folder))
        words = ["setup", "--bundle", str(BUNDLE), "--task", "pick it up", "--camera", "laptop=/dev/video0"]
        assert main(words) == 0
        assert not emulator.entries("write", "torque", "goal"), "setup only reads"
        assert what_answers(str(emulator.port), [load_arm("koch")]) == "a Koch follower"
    found = read_robot_file(folder / "robot.yaml")
    assert ("--port", str(emulator.port)) in found and ("--joints", str(folder / "koch.json")) in found
    assert ("--camera", "laptop=/dev/video0") in found
    assert "next: vla-runtime calibrate-joints" in capsys.readouterr().out
    assert main(["setup"]) == 2 and "--replace" in capsys.readouterr().err
    assert main(["setup", "--out", "new/deep/robot.yaml"]) == 0 and (folder / "new" / "deep" / "robot.yaml").is_file()


def test_setup_sees_which_arm_answers_on_a_port_that_is_given(folder: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(setup_robot, "list_v4l2", list)
    monkeypatch.setenv("HF_LEROBOT_HOME", str(folder))
    with emulator_process(folder, "--arm", "so101") as emulator:
        assert main(["setup", "--port", str(emulator.port)]) == 0
        assert not emulator.entries("write", "torque", "goal")
    assert ("--robot", "so101") in read_robot_file(folder / "robot.yaml")
    assert f"{emulator.port}: an SO-101 follower" in capsys.readouterr().out
    asked: list[tuple[str, list[Found]]] = []

    def ask(question: str, choices: Sequence[Found]) -> str:
        asked.append((question, list(choices)))
        return "so100"

    chosen = setup_robot.find_arm("no servo answers", ask)
    assert chosen == "so100" and asked[0][0] == "Which arm is it? None was recognised."
    assert [found.value for found in asked[0][1]] == ["koch", "so100", "so101"]


def test_setup_keeps_the_id_of_lerobots_calibration_and_does_not_ask_for_another(
    folder: Path, capsys, monkeypatch
) -> None:
    place = folder / "calibration" / "robots" / "so_follower"
    place.mkdir(parents=True)
    shutil.copy(SO101_JOINTS, place / "my_arm.json")
    monkeypatch.setenv("HF_LEROBOT_HOME", str(folder))
    monkeypatch.setattr(setup_robot, "list_v4l2", list)
    words = ["--robot", "so101", "--port", "/dev/arm", "--joints", "lerobot:my_arm", "--bundle", str(BUNDLE)]
    assert main(["setup", *words, "--task", "pick it up"]) == 0
    assert {("--robot", "so101"), ("--joints", "lerobot:my_arm")} <= set(read_robot_file(folder / "robot.yaml"))
    assert "calibrate-joints" not in capsys.readouterr().out


def test_setup_takes_lerobots_only_calibration_and_asks_where_there_are_two(folder: Path, monkeypatch) -> None:
    place = folder / "calibration" / "robots" / "koch_follower"
    place.mkdir(parents=True)
    (place / "blue.json").write_text("{}")
    environment = {"HF_LEROBOT_HOME": str(folder)}
    found = setup_robot.calibration_files(load_arm("koch"), environment)
    assert found == [Found(str(place / "blue.json"), "LeRobot's koch_follower blue")]
    (place / "blue.park.json").write_text("{}")
    assert setup_robot.calibration_files(load_arm("koch"), environment) == found, "a parking pose is no calibration"
    assert ask_nobody("which?", found) == str(place / "blue.json")
    (place / "red.json").write_text("{}")
    two = setup_robot.calibration_files(load_arm("koch"), environment)
    assert ask_nobody("which?", two) == ""
    answers = iter(["7\n", "2\n"])
    monkeypatch.setattr("sys.stdin", type("Terminal", (), {"readline": lambda self: next(answers)})())
    assert setup_robot.ask_person("which?", two) == str(place / "red.json")
