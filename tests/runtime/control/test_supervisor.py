# SPDX-License-Identifier: Apache-2.0
"""`vla-runtime run` against an emulated servo bus: how it begins, and every way in which it can end."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from rich.console import Console
from tests.runtime.control.control_rig import EVENT_S, Rig, rig, write_joints

from vla_edge.errors import CheckFailed, ControlError
from vla_edge.robot.arm_description import load_arm
from vla_edge.runtime.command import main as vla_runtime
from vla_edge.runtime.control import supervisor
from vla_edge.runtime.control.children import start
from vla_edge.runtime.control.faults import CAUSES, WANTED, fault_of
from vla_edge.runtime.control.flight_record import faults_of
from vla_edge.runtime.control.operator import Answer, is_alive, refusal_of
from vla_edge.runtime.control.person import Person, Wish
from vla_edge.runtime.control.run_folder import RunFolder

KOCH = load_arm("koch")
KOCH_JOINTS = KOCH.joint_names

pytest.importorskip("vla_edge._core")


@dataclass
class Supervised:
    """A `vla-runtime run` and the file of what it says."""

    process: subprocess.Popen[str]
    errors: Path

    def said(self) -> str:
        return self.errors.read_text()

    def end(self) -> tuple[int, str]:
        """Exit code and what was said, when it has ended."""
        self.process.communicate(timeout=EVENT_S)
        return self.process.returncode, self.said()


@contextlib.contextmanager
def supervised(made: Rig, bundle: Path, *flags: str, terminal: int | None = None) -> Iterator[Supervised]:
    """`vla-runtime run` in the rig's folder, once it has armed. terminal: descriptor of its controlling terminal."""
    words = [
        "-m",
        "vla_edge.runtime.command",
        "--bundle",
        str(bundle),
        "--robot",
        "koch",
        "--port",
        str(made.emulator.port),
    ]
    words += ["--joints", str(made.joints), "--run-dir", str(made.folder.path), *flags]
    errors = made.folder.path / "said"
    made.writer = None  # only one inference can write
    process = subprocess.Popen(
        [sys.executable, *words],
        stdin=subprocess.DEVNULL if terminal is None else terminal,
        stdout=subprocess.PIPE,
        stderr=errors.open("w"),
        text=True,
        start_new_session=True,
        preexec_fn=None if terminal is None else lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    try:
        end_s = time.monotonic() + EVENT_S
        while "armed; " not in errors.read_text():
            assert process.poll() is None, errors.read_text()
            assert time.monotonic() < end_s, "not armed"
            time.sleep(0.01)
        yield Supervised(process, errors)
    finally:
        process.kill()
        process.communicate()


def wait_for(made: Rig, what: Callable[[Mapping[str, Any]], bool]) -> bool:
    """Whether a status came for which `what` holds; there is none while control starts."""
    end_s = time.monotonic() + EVENT_S
    while time.monotonic() < end_s:
        with contextlib.suppress(ControlError):
            if what(made.status()):
                return True
        time.sleep(0.01)
    return False


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """(what a person types into, the terminal's own end)."""
    person, own = os.openpty()
    yield person, own
    os.close(person)
    os.close(own)


def gone(pid: int) -> bool:
    end_s = time.monotonic() + EVENT_S
    while is_alive(pid) and time.monotonic() < end_s:
        time.sleep(0.02)
    return not is_alive(pid)


def test_a_killed_supervisor_takes_control_with_it(golden_bundle: Path) -> None:
    with rig(golden_bundle, armed=False) as made:
        made.stop()
        with supervised(made, golden_bundle) as run:
            control = made.status()["pid"]
            run.process.kill()
            run.process.wait()
            assert gone(control), "control outlives its supervisor"
            assert made.status()["reason"] == "operator"  # it was stopped, not killed


def test_a_killed_control_process_is_no_good_end_of_a_run(golden_bundle: Path) -> None:
    with rig(golden_bundle, armed=False) as made:
        made.stop()
        with supervised(made, golden_bundle) as run:
            os.kill(made.status()["pid"], signal.SIGKILL)
            code, said = run.end()
        assert code == 1 and "control ended with exit code -9" in said.splitlines()[-1]


def test_the_status_of_a_control_process_that_ended_fails(
    golden_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with rig(golden_bundle, armed=False) as made:
        words = ["status", "--run-dir", str(made.folder.path)]
        assert vla_runtime(words) == 0
        made.stop()
        capsys.readouterr()
        assert vla_runtime([*words, "--json"]) == 1
        told = json.loads(capsys.readouterr().out)
        assert not told["alive"] and told["exit_code"] == 1 and "has ended or is stuck; start it again" in told["error"]


def test_an_inference_that_keeps_dying_is_started_three_times_then_the_run_ends_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up = SimpleNamespace(policy=SimpleNamespace(record_inputs=None), robot=None)
    this = supervisor.Run(RunFolder(tmp_path), cast(Any, made_up), cast(Any, None), ["laptop=0"])
    monkeypatch.setattr(supervisor, "inference_words", lambda *_: ["-c", "raise SystemExit(3)"])
    this.inference = start("inference", ["-c", "raise SystemExit(3)"])
    with Person() as person:
        person.has_terminal = False
        for deaths in range(supervisor.RESTARTS + 3):
            assert this.inference.process.wait(EVENT_S) == 3
            assert person.wishes(0) == ([Wish.STOP] if deaths == supervisor.RESTARTS + 1 else [])
            supervisor._keep_inference(this, person, Console(stderr=True))
            assert this.restarts == min(deaths + 1, 3)
    dead = "inference ended (3) after 3 restarts and is not started again"
    said = capsys.readouterr().err
    assert this.inference_died == dead and said.count("started again, the arm holds") == 3 and said.count(dead) == 1
    this.control = cast(Any, SimpleNamespace(process=SimpleNamespace(returncode=0)))
    with pytest.raises(CheckFailed, match=re.escape(dead)):
        supervisor._judge(this, {"state": "parked", "reason": "operator", "fault": "", "record": "record"})


def test_a_closed_terminal_ends_a_run_as_ctrl_c_does(golden_bundle: Path) -> None:
    with rig(golden_bundle, armed=False) as made:
        made.stop()
        with supervised(made, golden_bundle) as run:
            control = made.status()["pid"]
            run.process.send_signal(signal.SIGHUP)
            code, told = run.end()
        assert code == 130 and gone(control), told


def test_a_refused_start_is_one_line(golden_bundle: Path, tmp_path: Path) -> None:
    words = [
        "-m",
        "vla_edge.runtime.command",
        "--bundle",
        str(golden_bundle),
        "--robot",
        "koch",
        "--port",
        str(tmp_path / "no-port"),
    ]
    words += ["--joints", str(tmp_path / "joints.json"), "--run-dir", str(tmp_path / "run")]
    write_joints(tmp_path / "joints.json")
    ran = subprocess.run([sys.executable, *words, "--json"], capture_output=True, text=True, timeout=EVENT_S)
    told = [line for line in ran.stderr.splitlines() if not line.startswith("note:")]
    assert ran.returncode == 2 and len(told) == 1 and "no port" in told[0]
    assert json.loads(ran.stdout) == {"error": told[0].removeprefix("error: "), "exit_code": 2}


@pytest.mark.parametrize("seconds", ["nan", "inf", "-1"])
def test_a_length_that_is_none_is_refused(golden_bundle: Path, seconds: str) -> None:
    words = ["-m", "vla_edge.runtime.command", "--bundle", str(golden_bundle), "--seconds", seconds]
    ran = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=EVENT_S)
    assert ran.returncode == 2 and f"--seconds: '{seconds}' is not" in ran.stderr


def latched(status: Mapping[str, Any]) -> bool:
    return status["state"] == "hold" and status["latched"] and status["reason"] == "operator"


def test_ctrl_c_and_the_space_bar_hold_and_q_ends_with_the_arm_holding(
    golden_bundle: Path, terminal: tuple[int, int]
) -> None:
    person, own = terminal
    with rig(golden_bundle, armed=False) as made:
        made.store_parking_pose(2400)
        with supervised(made, golden_bundle, terminal=own) as run:
            for key in (b"\x03", b" ", b"r"):
                os.write(person, key)
                assert wait_for(made, latched), f"{key!r} did not hold"
                assert run.process.poll() is None
                os.write(person, b"a")
                assert wait_for(made, lambda status: not status["latched"]), "a did not arm"
            os.write(person, b"q")
            code, said = run.end()
        assert code == 0, said
        moved = np.abs(np.diff([goals for _, goals in made.goals()], axis=0))
        assert not moved.size or moved.max() <= 2, "it went towards the parking pose"
        assert not [entry for entry in made.emulator.entries("torque") if not entry["on"]][6:], "q let the arm go"
        assert "the arm holds" in said and "Armed for" in said and f"run folder {made.folder.path}" in said


def test_a_second_ctrl_c_ends_holding_and_a_third_adds_no_traceback(
    golden_bundle: Path, terminal: tuple[int, int]
) -> None:
    person, own = terminal
    with rig(golden_bundle, armed=False) as made:
        made.stop()
        with supervised(made, golden_bundle, terminal=own) as run:
            os.write(person, b"\x03")
            assert wait_for(made, latched), "Ctrl-C did not hold"
            os.write(person, b"\x03")
            assert wait_for(made, lambda status: not status["alive"]), "the second one did not end control"
            with contextlib.suppress(OSError):  # it may have ended already
                os.write(person, b"\x03")
            code, said = run.end()
        # The third may meet an interpreter that has nothing left to do but end, and end it: 130 for a shell as well.
        assert code in (130, -signal.SIGINT) and "Traceback" not in said, said


def test_without_a_terminal_the_first_interrupt_holds_and_ends(golden_bundle: Path) -> None:
    with rig(golden_bundle, armed=False) as made:
        made.stop()
        with supervised(made, golden_bundle) as run:
            run.process.send_signal(signal.SIGINT)
            code, said = run.end()
        assert code == 130 and made.status()["reason"] == "operator", said


def test_a_run_told_not_to_arm_waits_for_the_key(golden_bundle: Path, terminal: tuple[int, int]) -> None:
    person, own = terminal
    with rig(golden_bundle, armed=False) as made:
        made.stop()
        with supervised(made, golden_bundle, "--no-arm", terminal=own) as run:
            assert made.status()["state"] == "disarmed"
            os.write(person, b"a")
            assert wait_for(made, lambda status: status["state"] == "planning"), "a did not arm"
            os.write(person, b"q")
            code, _ = run.end()
        assert code == 0


@pytest.mark.parametrize(
    "event, reason, told",
    [
        ("dead 4", "reads_lost", "wrist_flex: does not answer; check cables"),
        ("dead 1", "reads_lost", "shoulder_pan: does not answer; check cables"),
        ("overload 6", "alert", "gripper: overload; free it, let it cool"),
    ],
)
def test_a_servo_that_fails_ends_the_run_with_1_its_name_and_what_to_do(
    golden_bundle: Path, event: str, reason: str, told: str
) -> None:
    with rig(golden_bundle, armed=False) as made:
        made.stop()
        with supervised(made, golden_bundle) as run:
            made.emulator.event(event)
            assert wait_for(made, lambda status: status["reason"] == reason and status["latched"]), "no hold"
            joint = KOCH_JOINTS.index(told.split(":")[0])
            assert wait_for(made, lambda status: status["joint"] == joint), "it was not named while the run went on"
            run.process.send_signal(signal.SIGTERM)
            code, said = run.end()
        assert code == 1 and told in said.splitlines()[-1], said
        words = [sys.executable, "-m", "vla_edge.runtime.command"]
        ran = subprocess.run([*words, "status", "--run-dir", str(made.folder.path)], capture_output=True, text=True)
        assert ran.returncode == 1 and "gone" in ran.stdout and "start it again" in ran.stderr
        replayed = subprocess.run([*words, "replay", str(made.folder.record)], capture_output=True, text=True)
        named = told.split(":")[0]
        assert replayed.returncode == 0 and f", {named}: {CAUSES[reason][0]}" in replayed.stdout, replayed.stdout


def test_a_warm_servo_is_told_while_the_run_goes_on(golden_bundle: Path) -> None:
    with rig(golden_bundle, armed=False) as made:
        made.stop()
        with supervised(made, golden_bundle) as run:
            made.emulator.event("temperature 5 61")
            assert wait_for(made, lambda status: status["warm_joint"] == 4), "the heat was not seen"
            end_s = time.monotonic() + EVENT_S
            while "wrist_roll is 61 °C warm" not in run.said():
                assert time.monotonic() < end_s, "nothing was said"
                time.sleep(0.02)
            words = [sys.executable, "-m", "vla_edge.runtime.command", "status", "--run-dir", str(made.folder.path)]
            told = subprocess.run(words, capture_output=True, text=True)
            assert told.returncode == 0 and "heat       wrist_roll is 61 °C warm" in told.stdout


@pytest.mark.parametrize("flag", ["--audit=5", "--threads=9999", "--nice=-3", "--record-fps=nan"])
def test_a_number_outside_its_range_is_refused_before_anything_starts(golden_bundle: Path, flag: str) -> None:
    words = ["-m", "vla_edge.runtime.command", "--bundle", str(golden_bundle), "--robot", "sim", "--task", "x", flag]
    ran = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=EVENT_S)
    assert ran.returncode == 2 and flag.split("=")[0] in ran.stderr and ran.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--inpaint-horizon=-5"], "--inpaint-horizon: '-5' is not a whole number from 1 up"),
        (["--inpaint-horizon=5", "--handover=blend"], "--inpaint-horizon 5 is of --handover inpaint"),
        (["--camera=latop=0", "--camera=phone=1"], "the policy has no camera latop; did you mean laptop?"),
        (["--camera=laptop=0"], "camera phone of the policy is not given"),
    ],
)
def test_what_inference_would_refuse_is_refused_before_the_run_folder_is_made(
    golden_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], told: str
) -> None:
    words = ["--bundle", str(golden_bundle), "--port", "/dev/none", "--joints", str(tmp_path / "joints.json")]
    assert vla_runtime(["run", *words, "--run-dir", str(tmp_path / "run"), "--task", "put it away", *flags]) == 2
    assert told in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_simulated_arm_is_chosen_only_for_a_simulated_run(golden_bundle: Path) -> None:
    words = ["--bundle", str(golden_bundle), "--robot", "koch", "--arm", "so101", "--port", "x", "--joints", "y"]
    command = [sys.executable, "-m", "vla_edge.runtime.command", *words, "--task", "x"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=EVENT_S)
    assert ran.returncode == 2 and ran.stderr.count("\n") == 1
    assert "--arm so101 names a simulated arm; add --robot sim" in ran.stderr


def test_a_stopped_supervisor_leaves_an_arm_that_holds_until_it_is_back(golden_bundle: Path) -> None:
    """Ctrl-Z, or a process that hangs: half a second without its heartbeat."""
    from vla_edge import _core

    with rig(golden_bundle, armed=False) as made:
        made.stop()
        with supervised(made, golden_bundle) as run:
            made.writer = _core.RingWriter(made.folder.ring)
            made.announce()
            made.move(10)
            run.process.send_signal(signal.SIGSTOP)
            made.wait(lambda status: status["reason"] == "supervisor")
            made.expect("hold", "supervisor")
            assert made.ask("arm").word == "fault"
            run.process.send_signal(signal.SIGCONT)
            made.wait(lambda status: not status["unattended"])
            made.arm()
            made.move(5)


def test_every_reason_of_the_core_to_stand_still_has_a_cause_and_a_remedy() -> None:
    source = (Path(__file__).parents[3] / "runtime" / "core" / "control" / "status.c").read_text()
    names = source[source.index("status_reason_name") :].split("{", 2)[2].split("}")[0]
    reasons = [name.strip().strip('"') for name in names.split(",")]
    assert set(reasons) == {*WANTED, *CAUSES}
    guarded = {"unguarded": False, "joints": KOCH_JOINTS}
    stalled = guarded | {"reason": "stall", "joint": 1}
    asked_to = guarded | {"reason": "operator", "joint": -1}
    assert refusal_of(Answer("fault", "hold", "stall", ""), stalled).startswith("shoulder_lift")
    assert "vla-runtime status" in refusal_of(Answer("fault", "hold", "operator", ""), asked_to)
    gone = refusal_of(Answer("fault", "hold", "operator", ""), asked_to | {"unguarded": True})
    assert gone.startswith("the guardian is gone") and gone.endswith("start again")
    assert refusal_of(Answer("outside", "disarmed", "outside", "gripper"), {}).startswith("gripper: it lies outside")
    assert fault_of({"reason": "stall", "joint": 1, "joints": KOCH_JOINTS}) == (
        "shoulder_lift: pressed against something; clear the way, then `vla-runtime arm`"
    )


def test_a_fault_is_told_once_with_the_servo_that_was_found_silent_last() -> None:
    def tick(number: int, reason: str, joint: int = -1, latched: bool = True) -> dict[str, Any]:
        told = {"tick": number, "state": "hold", "reason": reason, "joint": joint, "latched": latched}
        return {**told, "joints": KOCH.joint_names}

    ticks = [tick(1, ""), tick(2, "reads_lost", 3, latched=False), tick(3, "reads_lost"), tick(4, "reads_lost", 3)]
    ticks += [tick(5, "operator"), tick(6, "alert", 5), tick(7, "alert", 5), tick(8, ""), tick(9, "reads_lost", 0)]
    found = [(fault["tick"], fault["fault"].split(":")[0]) for fault in faults_of(ticks)]
    assert found == [(3, "wrist_flex"), (6, "gripper"), (9, "shoulder_pan")]


POSE = 2400
INPUTS: Mapping[str, bytes | signal.Signals] = {
    "Ctrl-C": b"\x03", "space": b" ", "r": b"r", "a": b"a", "p": b"p", "q": b"q", "Ctrl-C twice": b"\x03",
    "SIGTERM": signal.SIGTERM, "SIGHUP": signal.SIGHUP,
}  # fmt: skip
"""What a person presses at a run in a terminal, and the signals that end it."""
ENDS_HOLDING, PARKS_AND_ENDS, HOLDS = ("q", "Ctrl-C twice"), ("SIGTERM", "SIGHUP"), ("Ctrl-C", "space", "r")


@contextlib.contextmanager
def planned(made: Rig) -> Iterator[None]:
    """Inference plans on until the block ends, whatever becomes of the arm."""
    from vla_edge import _core

    made.writer = _core.RingWriter(made.folder.ring)
    made.announce()
    over = threading.Event()

    def plan() -> None:
        while not over.wait(0.1):
            with contextlib.suppress(ControlError):
                made.wave()

    thread = threading.Thread(target=plan, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        made.writer = None


def bring(made: Rig, person: int, state: str) -> None:
    """The armed run into a state."""
    assert wait_for(made, lambda status: status["state"] == "moving"), "not moving"
    if state == "held":
        os.write(person, b" ")
        assert wait_for(made, latched), "not held"
    if state in ("parking", "parked"):
        os.write(person, b"p")
        assert wait_for(made, lambda status: status["state"] == "parking"), "not parking"
    if state == "parked":
        assert wait_for(made, lambda status: status["reason"] == "parked"), "not parked"
    if state == "overloaded":
        made.emulator.event("overload 6")
        assert wait_for(made, lambda status: status["reason"] == "alert"), "no fault"
    if state in ("held", "overloaded"):
        tick = made.status()["tick"]
        made.wait(lambda status: status["tick"] > tick + status["rest_ticks"] + 12)


@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.parametrize("state", ["moving", "held", "parking", "parked", "overloaded"])
@pytest.mark.parametrize("pressed", INPUTS)
def test_what_a_person_asked_for_is_what_the_arm_does_for_two_seconds(
    golden_bundle: Path, terminal: tuple[int, int], pressed: str, state: str
) -> None:
    """By the emulator's log from the moment at which the arm rests, or the run has ended; inference plans on."""
    person, own = terminal
    with rig(golden_bundle, armed=False) as made:
        made.store_parking_pose(POSE)
        with supervised(made, golden_bundle, terminal=own) as run, planned(made):
            bring(made, person, state)
            keys = INPUTS[pressed]
            asked_ns = time.monotonic_ns()
            if isinstance(keys, bytes):
                os.write(person, keys)
            else:
                run.process.send_signal(keys)
            if isinstance(keys, bytes) and pressed == "Ctrl-C twice":
                time.sleep(0.3)  # two that meet are one
                os.write(person, keys)
            if pressed in HOLDS:
                assert wait_for(made, lambda status: status["tick"] > status["goal_moved_tick"] + 12), "it moves on"
            elif pressed == "p":
                assert wait_for(made, lambda status: status["reason"] == "parked"), "not parked"
            elif pressed == "a":
                goes = state not in ("overloaded", "parking")
                assert wait_for(made, lambda status: (status["state"] == "moving") == goes), "a was not obeyed"
            else:
                code, said = run.end()
                assert code == {"q": 0}.get(pressed, 130) or state == "overloaded", said
            since_ns = time.monotonic_ns()
            time.sleep(2.0)
            limp = [entry for entry in made.emulator.entries("torque") if not entry["on"] and entry["t"] > asked_ns]
            shown = [entry["positions"] for entry in made.emulator.entries("motion") if entry["t"] > since_ns]
            joints = [str(i) for i in range(1, 6 if state == "overloaded" else 7)]
            moved = max((int(np.ptp([each[i] for each in shown])) for i in joints), default=0) if shown else 0
            last = made.emulator.entries("motion")[-1]["positions"]
            parked = all(abs(last[i] - POSE) <= 2 for i in joints)
            if pressed == "a":
                assert (moved > 20) == (state != "overloaded")  # while it parks, a is refused and the parking goes on
            else:
                assert moved <= 2, f"{moved} counts"
            assert not limp or pressed in PARKS_AND_ENDS
            if pressed in PARKS_AND_ENDS or pressed == "p":
                assert parked and bool(limp) == (pressed in PARKS_AND_ENDS)
            if pressed in (*ENDS_HOLDING, *HOLDS) and state in ("moving", "held"):
                assert not parked
