# SPDX-License-Identifier: Apache-2.0
"""What a Koch must be before any torque: each bad input is one line with the joint or file and the fix, and no
torque."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from vla_edge.command_parser import CommandParser
from vla_edge.contract import JointCalibration
from vla_edge.errors import BusError, JointCalibrationError, VlaEdgeError
from vla_edge.robot import calibrate_joints as guide
from vla_edge.robot import first_contact
from vla_edge.robot.arm_description import load_arm
from vla_edge.robot.joint_calibration import JointCalibrations, load_joint_calibration, save_joint_calibration
from vla_edge.robot.port import check_latency_timer, open_port
from vla_edge.robot.servo_arm import ArmOptions, ArmResult, ServoArm, open_arm
from vla_edge.robot.servo_bus import BusResult, ServoBus
from vla_edge.robot.sim.emulator_process import EmulatorProcess, emulator_process
from vla_edge.robot.sim.servos import x_series_table as r
from vla_edge.robot.slow_motion import SlowLimits, move_slowly, ramp
from vla_edge.runtime.command import main

KOCH = load_arm("koch")
KOCH_JOINTS = KOCH.joint_names
FULL_TURN_JOINTS = ("shoulder_pan", "wrist_roll")
GOAL_PWM = dict(zip(KOCH_JOINTS, (600, 700, 885, 885, 600, 885)))

pytest.importorskip("vla_edge._core")

CALIBRATION = JointCalibrations(
    tuple(
        JointCalibration(
            name, i + 1, 0, 40 * i, 0 if name in FULL_TURN_JOINTS else 900, 4095 if name in FULL_TURN_JOINTS else 3200
        )
        for i, name in enumerate(KOCH_JOINTS)
    ),
    "arm.json",
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_joint_calibration(CALIBRATION.joints, tmp_path / "arm.json")
    return tmp_path / "arm.json"


def start(emulator: EmulatorProcess, calibration: JointCalibrations = CALIBRATION) -> ServoArm:
    return open_arm(ArmOptions(KOCH, str(emulator.port), calibration))


def test_a_good_arm_passes_and_is_configured_without_torque(tmp_path: Path, file: Path) -> None:
    with emulator_process(tmp_path, "--joints", str(file), "--set", "2:return_delay=250") as emulator:
        arm: ServoArm = start(emulator)
        assert arm.read().positions == (2048,) * 6
        assert arm.joints == KOCH_JOINTS
        arm.close()
        assert not emulator.entries("goal", "torque", "refused")
        written = {(entry["id"], entry["address"]): entry["data"] for entry in emulator.entries("write")}
    assert written[2, 9] == "00"
    assert (written[3, 84], written[3, 80]) == ("dc05", "5802")  # P 1500, D 600
    assert all(written[servo, 112] == "83000000" and written[servo, 108] == "a4000000" for servo in range(1, 7))
    assert written[6, 102] == "ee02"


@pytest.mark.parametrize("rebooted", [(3,), (6,), (1, 2, 3, 4, 5, 6)])
def test_servos_that_forgot_their_settings_hold_them_again_before_there_is_torque(
    tmp_path: Path, file: Path, rebooted: tuple[int, ...]
) -> None:
    """A servo whose voltage broke down has the factory's gains, no speed limit and 1750 mA in the gripper."""
    with emulator_process(tmp_path, "--joints", str(file)) as emulator:
        arm = start(emulator)
        arm.set_torque(True)
        for servo in rebooted:
            emulator.event(f"reboot {servo}")
        while not all(arm._bus.ping().values()):  # they start anew
            pass
        arm.set_torque(True)
        arm.close()
        bus = ServoBus(str(emulator.port), KOCH)
        assert bus.read_all(r.PROFILE_VELOCITY) == dict.fromkeys(KOCH_JOINTS, 131)
        assert bus.read_all(r.GOAL_PWM) == GOAL_PWM and bus.read("gripper", r.GOAL_CURRENT) == 750
        assert (bus.read("elbow_flex", r.POSITION_P), bus.read("elbow_flex", r.POSITION_D)) == (1500, 600)
        assert set(bus.read_all(r.TORQUE_ENABLE).values()) == {1}
        bus.close()


def test_a_servo_that_does_not_take_a_setting_gets_no_torque_and_is_named(tmp_path: Path, file: Path) -> None:
    with emulator_process(tmp_path, "--joints", str(file), "--set", "2:pwm_limit=500") as emulator:
        with pytest.raises(BusError, match=r"shoulder_lift \(id 2\) does not take goal_pwm = 700"):
            start(emulator)
        assert not emulator.entries("goal", "torque")


def test_a_setting_that_a_servo_takes_no_longer_is_no_torque_and_named(tmp_path: Path, file: Path) -> None:
    """Asked for again at each torque-on, below the slow path: by the C core alone."""
    with emulator_process(tmp_path, "--joints", str(file)) as emulator:
        arm = start(emulator)
        bus = arm._bus.native
        bus.settings([(r.GOAL_PWM.address, 2, (600, 886, 885, 885, 600, 885))])  # one more than there is
        with pytest.raises(BusError, match="shoulder_lift holds goal_pwm = 700 and does not take 886"):
            arm.set_torque(True)
        arm.close()
        assert not emulator.entries("torque")


def test_shadow_mode_writes_nothing_at_all(tmp_path: Path, file: Path) -> None:
    with emulator_process(tmp_path, "--joints", str(file), "--set", "2:return_delay=250") as emulator:
        open_arm(ArmOptions(KOCH, str(emulator.port), CALIBRATION, write=False)).close()
        assert not emulator.entries("goal", "torque", "write", "refused")


def test_servos_whose_answers_come_late_are_not_called_dead_or_damaged(tmp_path: Path) -> None:
    """A busy machine hands bytes of a serial port on late; more patience finds what the first tries missed."""
    with emulator_process(tmp_path, "--late-ms", "120", "120", "--rate", "late", "1") as emulator:
        bus = ServoBus(str(emulator.port), KOCH)
        assert None not in bus.ping().values()
        assert bus.read_all(r.OPERATING_MODE) == {joint: 5 if joint == "gripper" else 4 for joint in KOCH_JOINTS}
        bus.write("elbow_flex", r.POSITION_P, 1500)
        bus.close()


BAD_SERVOS = [
    (["--set", "3:model_number=1190"], ["elbow_flex", "1190", "1200", "leader arm", "follower's port"]),
    (["--set", "2:firmware=30"], ["shoulder_lift", "30", "38", "Dynamixel Wizard"]),
    (["--set", "4:baud_rate=1"], ["wrist_flex", "57,600", "factory", "lerobot-setup-motors"]),
    (["--missing", "5"], ["wrist_roll", "id 5", "cable"]),
    (["--missing", "2", "--missing", "6"], ["shoulder_lift", "gripper", "cable"]),
    ([word for i in range(1, 7) for word in ("--missing", str(i))], ["no servo answers", "power supply"]),
    (["--set", "1:present_voltage=50"], ["shoulder_pan", "5.0 V", "power supply"]),
    (["--set", "6:present_voltage=119"], ["gripper", "11.9 V", "6.0 V"]),
    (["--set", "5:hardware_error=32"], ["wrist_roll", "overload", "vla-runtime recover"]),
    (["--set", "3:operating_mode=3"], ["elbow_flex", "operating mode 3", "calibrate-joints"]),
    (["--set", "6:operating_mode=4"], ["gripper", "current-based", "calibrate-joints"]),
    (["--set", "2:drive_mode=4"], ["shoulder_lift", "drive_mode is 4", "arm.json"]),
    (["--set", "4:homing_offset=-900"], ["wrist_flex", "homing_offset is -900", "arm.json", "calibrate-joints"]),
    (["--set", "6:max_position=3201"], ["gripper", "range_max is 3201", "3200", "arm.json"]),
]


@pytest.mark.parametrize(("arguments", "words"), BAD_SERVOS, ids=[" ".join(words[:2]) for _, words in BAD_SERVOS])
def test_a_wrong_servo_is_one_line_and_no_torque(
    tmp_path: Path, file: Path, arguments: list[str], words: list[str]
) -> None:
    with emulator_process(tmp_path, "--joints", str(file), *arguments) as emulator:
        with pytest.raises((BusError, JointCalibrationError)) as caught:
            start(emulator)
        assert not emulator.entries("goal", "torque", "write")
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_the_calibration_of_another_arm_is_called_so(tmp_path: Path, file: Path) -> None:
    other = replace(
        CALIBRATION, joints=tuple(replace(j, homing_offset=j.homing_offset + 500) for j in CALIBRATION.joints)
    )
    with emulator_process(tmp_path, "--joints", str(file)) as emulator:
        with pytest.raises(
            JointCalibrationError, match=r"shoulder_pan: .*6 of 6 joints disagree: probably another arm's"
        ):
            start(emulator, other)
        assert not emulator.entries("goal", "torque", "write")


def test_a_joint_a_turn_away_from_its_range_is_refused(tmp_path: Path, file: Path) -> None:
    with emulator_process(
        tmp_path, "--joints", str(file), "--positions", "2048", "2048", "6144", "2048", "2048", "2048"
    ) as emulator:
        with pytest.raises(JointCalibrationError, match="elbow_flex stands at 6144 counts, its range is 900..3200"):
            start(emulator)
        assert not emulator.entries("goal", "torque", "write")


def test_a_restart_finds_torque_on_and_moves_nothing(tmp_path: Path, file: Path) -> None:
    """As after a killed control process: the servos hold; nothing of EEPROM needs to be written."""
    held = [word for i in range(1, 7) for word in ("--set", f"{i}:torque_enable=1")]
    with emulator_process(tmp_path, "--joints", str(file), *held) as emulator:
        start(emulator).close()
        assert not emulator.entries("goal", "torque", "refused", "watchdog")


def test_eeprom_that_would_have_to_change_under_torque_is_told(tmp_path: Path, file: Path) -> None:
    with emulator_process(
        tmp_path, "--joints", str(file), "--set", "2:return_delay=9", "--set", "2:torque_enable=1"
    ) as emulator:
        with pytest.raises(
            BusError,
            match=r"shoulder_lift \(id 2\) does not take return_delay = 0; it is EEPROM, written only without torque",
        ):
            start(emulator)


def test_servos_that_answer_too_slowly_to_be_moved_are_told_before_any_torque(tmp_path: Path, file: Path) -> None:
    with emulator_process(tmp_path, "--joints", str(file), "--late-ms", "2000", "2000") as emulator:
        arm = open_arm(ArmOptions(KOCH, str(emulator.port), CALIBRATION))
        emulator.event("rate stall 1.0")
        with pytest.raises(BusError, match="reading the joints failed .*that the adapter answers at once"):
            move_slowly(arm, {}, SlowLimits())
        arm.close()
        assert not emulator.entries("goal", "torque")


def test_a_servo_that_answers_every_ping_twice_is_not_called_missing(tmp_path: Path, file: Path) -> None:
    with emulator_process(tmp_path, "--joints", str(file), "--rate", "twice", "1.0") as emulator:
        with pytest.raises(BusError, match="shoulder_pan .id 1. answers with damaged packets; .* no id is used twice"):
            start(emulator)


def test_the_results_have_the_numbers_of_the_c_headers() -> None:
    bus = Path(__file__).resolve().parents[2] / "robot" / "bus"
    for header, prefix, results in (("arm.h", "ARM", ArmResult), ("bus.h", "BUS", BusResult)):
        (names,) = re.findall(rf"typedef enum {{\s+({prefix}_OK[^}}]*?)\s+}}", (bus / header).read_text())
        assert names.split(", ") == [f"{prefix}_{result.name}" for result in results]


def test_two_processes_cannot_have_one_port(tmp_path: Path, file: Path) -> None:
    """The lock is the kernel's and the same between threads, processes and users of one machine."""
    with emulator_process(tmp_path, "--joints", str(file)) as emulator:
        arm = start(emulator)
        with pytest.raises(BusError, match="in use by another process.*fuser"):
            start(emulator)
        arm.close()
        start(emulator).close()


def as_nobody(action: Callable[[], str]) -> str:
    """What `action` returns, or the BusError's line, in a child without any privilege that ends without tidying up."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        message = "no message"
        try:
            os.setgroups([])
            os.setuid(65534)
            message = action()
        except BusError as error:
            message = str(error)
        finally:
            os.write(writer, message.encode())
            os._exit(0)
    os.waitpid(child, 0)
    return os.read(reader, 1000).decode()


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody without privileges")


@needs_root
def test_no_permission_on_the_port_names_the_group_to_join(tmp_path: Path) -> None:
    with emulator_process(tmp_path) as emulator:
        terminal = os.path.realpath(emulator.port)
        message = as_nobody(lambda: str(open_port(terminal, KOCH, range(1, 7))))
    assert message.startswith(f"no permission on {terminal}; ") and "dialout" in message


@needs_root
def test_a_process_that_died_does_not_lock_out_the_restart(tmp_path: Path) -> None:
    with emulator_process(tmp_path) as emulator:
        terminal = os.path.realpath(emulator.port)
        os.chmod(terminal, 0o666)
        for _ in range(2):
            assert as_nobody(lambda: str(open_port(terminal, KOCH, range(1, 7)).ping(1, 0.5))) == "(0, 1060, 46)"


def test_a_path_that_is_no_serial_port_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(BusError, match="is not a serial port"):
        open_port(str(tmp_path / "file"), KOCH, range(1, 7))
    with pytest.raises(BusError, match="no port"):
        open_port(str(tmp_path / "none"), KOCH, range(1, 7))


def test_a_slow_latency_timer_is_refused_with_the_command_that_mends_it(tmp_path: Path) -> None:
    timer = tmp_path / "ttyUSB9" / "device" / "latency_timer"
    timer.parent.mkdir(parents=True)
    timer.write_text("16\n")
    with pytest.raises(BusError, match=r"is 16 ms.*tee .*latency_timer"):
        check_latency_timer("ttyUSB9", tmp_path)
    timer.write_text("1\n")
    check_latency_timer("ttyUSB9", tmp_path)
    check_latency_timer("ttyACM0", tmp_path)


def test_start_up_survives_lost_and_damaged_replies(tmp_path: Path, file: Path) -> None:
    """One status in ten has a fault; what is read must still be right."""
    rates = [word for name in ("drop", "bit_flip", "late", "wrong_id", "truncate") for word in ("--rate", name, "0.02")]
    with emulator_process(tmp_path, "--joints", str(file), *rates) as emulator:
        start(emulator).close()
        assert not emulator.entries("goal", "torque")


class ScriptedPerson:
    """Turns the emulated shafts as the guide asks: the middle first, then each joint to both ends."""

    def __init__(self, emulator: EmulatorProcess, middle: list[int], ends: dict[int, tuple[int, int]]) -> None:
        self._emulator = emulator
        self._asked = 0
        self._moves = [(servo, count) for servo, pair in ends.items() for count in pair]
        self._middle = middle

    def _push(self, servo: int, counts: int) -> None:
        self._emulator.event(f"push {servo} {counts}")

    def ask(self, text: str) -> None:
        self._asked += 1
        if self._asked == 1:
            for i, counts in enumerate(self._middle):
                self._push(i + 1, counts)

    def show(self, ranges: Mapping[str, tuple[int, int, int]]) -> bool:
        if not self._moves:
            return True
        self._push(*self._moves.pop(0))
        return False


ENDS = {2: (900, 3100), 3: (1000, 3000), 4: (1100, 2900), 6: (2000, 3300)}


def calibrate(emulator: EmulatorProcess, ends: dict[int, tuple[int, int]], lift: int = 1500) -> list[JointCalibration]:
    bus = ServoBus(str(emulator.port), KOCH)
    try:
        person = ScriptedPerson(emulator, [1000, lift, 2000, 2500, 3000, 2800], ends)
        return guide.calibrate_joints(bus, person, sleep=lambda _: time.sleep(0.05))
    finally:
        bus.close()


def test_a_guided_calibration_fits_the_servos_it_was_made_with(tmp_path: Path) -> None:
    arguments = ["--set", "3:operating_mode=3", "--set", "5:homing_offset=123", "--set", "2:drive_mode=1"]
    with emulator_process(tmp_path, *arguments) as emulator:
        joints = calibrate(emulator, ENDS, lift=-1500)  # reversed: its turn is -4095..0
        assert not [entry for entry in emulator.entries("torque") if entry["on"]] and not emulator.entries("goal")
        assert {joint.name: (joint.range_min, joint.range_max) for joint in joints} == {
            "shoulder_pan": (0, 4095),
            "shoulder_lift": (900, 3100),
            "elbow_flex": (1000, 3000),
            "wrist_flex": (1100, 2900),
            "wrist_roll": (0, 4095),
            "gripper": (2000, 3300),
        }
        assert [joint.homing_offset for joint in joints] == [
            2047 - counts for counts in (1000, -1500, 2000, 2500, 3000, 2800)
        ]
        assert [joint.drive_mode for joint in joints] == [0, 1, 0, 0, 0, 0]
        start(emulator, JointCalibrations(tuple(joints), "new.json")).close()


@pytest.mark.parametrize(
    ("middle", "joint"), [((2047, -300, 2047), "shoulder_lift"), ((2047, 2047, 4500), "elbow_flex")]
)
def test_a_middle_past_the_end_of_the_encoder_is_refused_and_nothing_stored(
    tmp_path: Path, middle: tuple[int, int, int], joint: str
) -> None:
    """After a power cycle the servo counts within one turn again, and the calibration would be a turn off."""
    with emulator_process(tmp_path, "--positions", *map(str, middle), "2047", "2047", "2300") as emulator:
        bus = ServoBus(str(emulator.port), KOCH)
        person = ScriptedPerson(emulator, [*middle, 2047, 2047, 2300], ENDS)
        with pytest.raises(
            JointCalibrationError, match=f"{joint} was at .* past the end of its encoder .*power off and on"
        ):
            guide.calibrate_joints(bus, person, sleep=lambda _: time.sleep(0.05))
        assert bus.read(joint, r.HOMING_OFFSET) == 0
        bus.close()


def test_a_range_past_the_end_of_the_encoder_is_refused(tmp_path: Path) -> None:
    with emulator_process(tmp_path) as emulator:
        bus = ServoBus(str(emulator.port), KOCH)
        person = ScriptedPerson(emulator, [2047, 2047, 2047, 3500, 2047, 2047], ENDS)
        with pytest.raises(JointCalibrationError, match=r"wrist_flex was at 2553..4353 counts, past the end"):
            guide.calibrate_joints(bus, person, sleep=lambda _: time.sleep(0.05))
        bus.close()


def test_the_guide_in_a_terminal_writes_file_and_servos(tmp_path: Path) -> None:
    """The command itself, its questions answered over a pipe while the shafts are turned."""
    path = tmp_path / "made.json"
    command = "import sys; from vla_edge.runtime.command import main; sys.exit(main(sys.argv[1:]))"
    with emulator_process(tmp_path) as emulator:
        words = [sys.executable, "-c", command, "calibrate-joints", "--port", str(emulator.port), "--joints", str(path)]
        pipe = subprocess.PIPE
        with subprocess.Popen([*words, "--json"], stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
            assert process.stdin is not None and process.stderr is not None
            while "press Enter" not in process.stderr.readline():
                pass
            process.stdin.write("\n\n")
            process.stdin.flush()
            while "end to end" not in process.stderr.readline():
                pass
            for servo, ends in ENDS.items():
                for counts in ends:
                    emulator.event(f"push {servo} {counts}")
                    given = 0
                    while given < 3:  # one that a busy machine hands on too late is asked for again
                        assert process.poll() is None
                        answers = emulator.entries("answer")
                        given = sum(answer["positions"].get(str(servo)) == counts for answer in answers)
            output, said = process.communicate("\n", timeout=240)
        assert process.returncode == 0 and f"written to the servos and to {path}" in said
        made = load_joint_calibration(path, KOCH)
        told = json.loads(output)
        assert told["file"] == str(path) and told["joints"] == [asdict(joint) for joint in made.joints]
        assert [(j.range_min, j.range_max) for j in made.joints if j.id in ENDS] == list(ENDS.values())
        start(emulator, made).close()


def test_an_arm_under_torque_is_let_go_only_after_a_warning(tmp_path: Path) -> None:
    class Nobody(ScriptedPerson):
        def ask(self, text: str) -> None:
            raise JointCalibrationError(text)

    with emulator_process(tmp_path, "--set", "2:torque_enable=1") as emulator:
        bus = ServoBus(str(emulator.port), KOCH)
        with pytest.raises(JointCalibrationError, match="hold it"):
            guide.calibrate_joints(bus, Nobody(emulator, [], {}))
        bus.close()
        assert not emulator.entries("torque", "write")


def test_a_joint_that_was_not_moved_is_named_and_nothing_is_usable(tmp_path: Path) -> None:
    with emulator_process(tmp_path) as emulator:
        with pytest.raises(JointCalibrationError, match="wrist_flex moved only"):
            calibrate(emulator, {servo: ends for servo, ends in ENDS.items() if servo != 4})


def test_an_existing_calibration_file_is_not_replaced_unasked(file: Path) -> None:
    parser = CommandParser("calibrate-joints", "")
    guide.add_arguments(parser)
    with pytest.raises(JointCalibrationError, match="--replace"):
        guide.run(parser.parse_args(["--port", "none", "--joints", str(file)]))


def move(emulator: EmulatorProcess, file: Path, *words: str) -> int:
    arguments = main.parser("move").parse_args(["--port", str(emulator.port), "--joints", str(file), *words])
    return first_contact.run(arguments)


def moved(emulator: EmulatorProcess, file: Path, *words: str) -> None:
    """Moved, again where a busy machine let the servos wait until they stopped."""
    while True:
        try:
            assert move(emulator, file, *words) == 0
            return
        except BusError as error:
            assert "heard nothing for too long" in str(error)


def test_a_motion_in_which_servos_stopped_for_hearing_nothing_is_no_arrival(tmp_path: Path, file: Path) -> None:
    """Its goals are no longer taken, and one joint stands where it stood: parked, it would be let go of there."""
    with emulator_process(tmp_path, "--joints", str(file)) as emulator:
        arm = open_arm(ArmOptions(KOCH, str(emulator.port), CALIBRATION))
        pauses = iter([0.02] * 5 + [0.5])
        try:
            with pytest.raises(BusError, match="heard nothing for too long and stopped where it is; .* move again"):
                move_slowly(arm, {"elbow_flex": 2248}, SlowLimits(speed=228), lambda _: time.sleep(next(pauses, 0.0)))
        finally:
            arm.close()
        assert emulator.entries("watchdog")


def test_first_contact_moves_one_joint_slowly_and_parks(
    tmp_path: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with emulator_process(tmp_path, "--joints", str(file)) as emulator:
        assert move(emulator, file, "--store-park") == 0
        assert not emulator.entries("goal", "torque", "write")
        words = ["--joint", "elbow_flex", "--to", "10", "--speed", "20", "--json"]
        result: dict[str, Any] = {"error": "heard nothing for too long"}
        while "heard nothing for too long" in result.get("error", ""):  # see `moved`
            earlier = len(emulator.entries("goal"))
            code = main(["move", "--port", str(emulator.port), "--joints", str(file), *words])
            result = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert code == 0
        assert result["positions"]["elbow_flex"] == pytest.approx(10, abs=30 * 360 / 4095)
        goals = emulator.entries("goal")[earlier:]
        moved(emulator, file, "--park")
        off = [entry["id"] for entry in emulator.entries("torque") if not entry["on"]]
    assert sorted(set(off)) == [1, 2, 3, 4, 5, 6]
    assert goals[0]["goals"] == goals[0]["present"]
    for before, after in zip(goals, goals[1:]):
        steps = {servo: after["goals"][servo] - before["goals"][servo] for servo in before["goals"]}
        assert abs(steps.pop("3")) <= 20 * 4096 / 360 * 0.02 + 1  # 20°/s at 50 Hz, rounded to counts
        assert set(steps.values()) == {0}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--joint", "elbow_flex", "--to", "500"], "elbow_flex: goal .* outside its calibrated range 900..3200"),
        (["--joint", "elbow_flex", "--to", "nan"], "elbow_flex: nan is not a position"),
        (["--joint", "elbow_flex", "--to", "1", "--speed", "200"], "--speed: '200' is not a number from 1 to 30"),
        (["--joint", "elbow_flex"], "--joint and --to belong together"),
        (["--park"], "no parking pose"),
    ],
)
def test_a_motion_that_cannot_be_is_refused_without_torque(
    tmp_path: Path, file: Path, words: list[str], message: str
) -> None:
    with emulator_process(tmp_path, "--joints", str(file)) as emulator:
        with pytest.raises(VlaEdgeError, match=message):
            move(emulator, file, *words)
        assert not emulator.entries("goal", "torque")


def test_an_overloaded_servo_stops_the_first_motion(tmp_path: Path, file: Path) -> None:
    with emulator_process(tmp_path, "--joints", str(file), "--at", "1.5 overload 2") as emulator:
        with pytest.raises(BusError, match="shoulder_lift reports a hardware alert"):
            move(emulator, file, "--joint", "elbow_flex", "--to", "80", "--speed", "15")


def test_the_profile_option_reaches_the_arm(tmp_path: Path, file: Path) -> None:
    with emulator_process(tmp_path, "--joints", str(file)) as emulator:
        options = ArmOptions(KOCH, str(emulator.port), load_joint_calibration(file, KOCH), velocity=670.0)
        arm = open_arm(options)
        arm.set_torque(True)
        arm.close()
        bus = ServoBus(str(emulator.port), KOCH)
        assert bus.read_all(r.PROFILE_VELOCITY) == dict.fromkeys(KOCH_JOINTS, 44)
        bus.close()


def test_a_first_motion_survives_lost_replies(tmp_path: Path, file: Path) -> None:
    """One status of fifty lost: one reading of nine. A reading is asked for again before the servos' watchdog trips."""
    with emulator_process(tmp_path, "--joints", str(file), "--rate", "drop", "0.02") as emulator:
        for to in ("8", "0", "8"):
            moved(emulator, file, "--joint", "wrist_flex", "--to", to, "--speed", "30")


def test_a_ramp_ends_at_the_goal_and_never_steps_further_than_allowed() -> None:
    goals = list(ramp((0, 0, 5), (100, -33, 5), 6.8))
    assert goals[-1] == (100, -33, 5)
    steps = [abs(b - a) for before, after in zip([(0, 0, 5), *goals], goals) for a, b in zip(before, after)]
    assert max(steps) <= 7
