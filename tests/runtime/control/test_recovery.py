# SPDX-License-Identifier: Apache-2.0
"""Every fault of a running arm, the recovery that its message names, and what the servos hold afterwards.

Judged by the emulator's log: the arm stands once it has slowed down, it moves again after the recovery, and a dump of
the registers shows the settings and limits of the start.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.runtime.control.control_rig import EVENT_S, Rig, rig, write_joints

from vla_edge.errors import BusError
from vla_edge.robot.arm_description import ArmDescription, load_arm
from vla_edge.robot.joint_calibration import load_joint_calibration
from vla_edge.robot.sim.emulator_process import emulator_process
from vla_edge.runtime.control.faults import CAUSES
from vla_edge.runtime.control.recover import drives, recover_alone, recover_running

KOCH = load_arm("koch")
KOCH_JOINTS = KOCH.joint_names

pytest.importorskip("vla_edge._core")

CHANGING = ("goal_position", "moving", "present_")
"""Registers that are not the same whenever the arm is armed, or how their names begin."""


@dataclass(frozen=True)
class Fault:
    """events: of the emulator's grammar, or a function; mended: how the cause goes away; recover: a servo shut down;
    anew: control has to be started again."""

    reason: str
    joint: str
    events: tuple[str, ...] | Callable[[Rig], None]
    mended: tuple[str, ...] = ()
    recover: bool = False
    anew: bool = False


def another_writer(made: Rig) -> None:
    from vla_edge import _core

    made.writer = None
    made.writer = _core.RingWriter(made.folder.ring)
    made.announce()


def refused_setting(made: Rig) -> None:
    """A servo lost its power, and does not take its settings when the arm is armed again."""
    made.emulator.event("reboot 3")
    made.wait(lambda status: status["reason"] == "torque")
    made.emulator.event(f"ignore 3 {'position_p' if made.description.has_watchdog else 'acceleration'}")
    made.wait(
        lambda status: status["reading_tick"] == status["tick"] > status["goal_moved_tick"] + status["rest_ticks"]
    )
    end_s = time.monotonic() + EVENT_S
    while made.status()["reason"] != "setting":  # a lost reading makes it refuse before it comes so far
        assert made.ask("arm").word in ("done", "fault", "busy") and time.monotonic() < end_s, made.status()
        time.sleep(0.05)


POWER_OFF_AND_ON = tuple(f"reboot {servo}" for servo in range(1, 7))
FAULTS = {
    "a gripper overload": Fault("alert", "gripper", ("overload 6",), recover=True),
    "a brown-out of one servo": Fault("torque", "elbow_flex", ("reboot 3",)),
    "a brown-out of all": Fault("torque", "", POWER_OFF_AND_ON),
    "torque switched off by somebody": Fault("torque", "elbow_flex", ("limp 3",)),
    "a bus that was silent": Fault("watchdog", "", ("hang 1.0",)),
    "a servo that does not answer": Fault("reads_lost", "wrist_flex", ("dead 4",), ("alive 4",)),
    "an obstacle": Fault("stall", "shoulder_lift", ("block 2 1000 2100",), ("free 2",)),
    "a supply that sinks": Fault("voltage", "wrist_flex", ("voltage 4 30",), ("voltage 4 50",)),
    "a hot servo": Fault("temperature", "wrist_flex", ("temperature 4 68",), ("temperature 4 30",)),
    "a servo that takes no goals": Fault(
        "deaf", "wrist_roll", ("ignore 5 goal_position",), POWER_OFF_AND_ON, anew=True
    ),
    "a servo that takes no settings": Fault("setting", "elbow_flex", refused_setting, POWER_OFF_AND_ON, anew=True),
    "two inference processes": Fault("writer", "", another_writer),
}
SO101_FAULTS = FAULTS | {
    "a bus that was silent": Fault("reads_lost", "", ("hang 1.0",)),
    "a supply that sinks": Fault("voltage", "wrist_flex", ("voltage 4 70",), ("voltage 4 120",)),
}
"""Nothing stops its servos, and they are on 12 V."""


def dump(made: Rig) -> Mapping[str, Mapping[str, int]]:
    """What every servo holds now, by id and register."""
    made.emulator.event("dump")
    servos: Mapping[str, Mapping[str, int]] = made.emulator.entries("registers")[-1]["servos"]
    return {
        servo: {name: value for name, value in values.items() if not name.startswith(CHANGING)}
        for servo, values in servos.items()
    }


def assert_torque_and_settings(arm: ArmDescription, held: Mapping[str, Mapping[str, int]]) -> None:
    """What the servos hold, by id and register, is what the description says; the speed is the run's."""
    for joint, servo in arm.ids.items():
        assert held[str(servo)]["torque_enable"] == 1
        for setting in arm.settings:
            wanted = setting.of.get(joint, setting.value)
            if wanted is not None and setting.register != arm.speed:
                assert held[str(servo)][setting.register] == wanted, (joint, setting.register)


def until_it_stands(made: Rig, fault: Fault) -> Mapping[str, Any]:
    """Inference plans on; the status of the latched hold or fault, its goals at rest."""
    end_s = time.monotonic() + EVENT_S
    while (status := made.status())["reason"] != fault.reason or not status["latched"]:
        assert time.monotonic() < end_s, f"not {fault.reason}: {status}"
        made.wave()
        time.sleep(0.03)
    rests = status["tick"] + status["rest_ticks"] + 12  # and the force is led back
    return made.wait(lambda status: status["tick"] > max(rests, status["goal_moved_tick"] + 5))


def go_on(made: Rig) -> None:
    """`vla-runtime arm` until it is taken, and a motion."""
    made.arm()
    made.move(5)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("arm", "faults"),
    [("koch", FAULTS), pytest.param("so101", SO101_FAULTS, marks=pytest.mark.soak)],
    ids=["koch", "so101"],
)
def test_every_fault_stands_still_and_its_recovery_brings_back_the_motion_and_all_settings(
    golden_bundle: Path, arm: str, faults: Mapping[str, Fault]
) -> None:
    with rig(golden_bundle, arm=arm) as made:
        made.move(5)
        reference = dump(made)
        assert_torque_and_settings(made.description, reference)
        for name, fault in faults.items():
            if callable(fault.events):
                fault.events(made)
            else:
                for event in fault.events:
                    made.emulator.event(event)
            until_it_stands(made, fault)
            if (
                fault.joint
            ):  # of a lost reading it is what the newest question showed: beside other programs nothing, at times
                index = KOCH_JOINTS.index(fault.joint)
                made.wait(lambda status: status["joint"] == index)  # noqa: B023
            since_ns = time.monotonic_ns()
            for _ in range(10):  # it stays so, whatever inference writes
                made.wave()
                time.sleep(0.03)
            goals = [goal for t, goal in made.goals() if t > since_ns]
            assert not goals or np.ptp(goals, axis=0).max() == 0, f"{name}: it moved on"
            if fault.anew:
                made.writer = None
                made.stop()
            for event in fault.mended:
                made.emulator.event(event)
            if fault.anew:
                made.start_control()
                another_writer(made)
            elif fault.mended:
                made.wait(lambda status: status["tick"] - status["reading_tick"] == 0)
            remedy = CAUSES[fault.reason][1]
            assert ("vla-runtime recover" in remedy, "start again" in remedy) == (fault.recover, fault.anew)
            if fault.recover:
                recover_running(made.folder)
            go_on(made)
            assert dump(made) == reference, name
        made.writer = None
        os.truncate(made.folder.ring, 0)
        made.wait(lambda status: status["reason"] == "files")
        made.stop()  # its message says: start again
        made.start_control()
        another_writer(made)
        go_on(made)
        assert dump(made) == reference


def test_a_second_of_every_process_is_refused_in_one_line_and_the_arm_does_not_notice(
    golden_bundle: Path, tmp_path: Path
) -> None:
    with rig(golden_bundle) as made:
        made.move(6)
        folder, port = ["--run-dir", str(made.folder.path)], ["--port", str(made.emulator.port)]
        elsewhere, joints = ["--run-dir", str(tmp_path / "run")], ["--joints", str(made.joints)]
        bundle = ["--bundle", str(golden_bundle)]
        pictures = tmp_path / "pictures.npz"
        np.savez(pictures, frames=np.zeros((1, 96, 128, 3), np.uint8))
        cameras = [word for name in ("laptop", "phone") for word in ("--camera", f"{name}=file:{pictures}")]
        held, taken = "is in use by another process", "already runs in"
        asked = {
            ("run", *bundle, *port, *joints, *folder): taken,
            ("run", *bundle, *port, *joints, *elsewhere): held,
            ("control", *bundle, *port, *joints, *folder): taken,
            ("control", *bundle, *port, *joints, *elsewhere): held,
            ("inference", *bundle, *folder, "--task", "x", *cameras, "--trust-cameras"): "writes to",
            ("move", *port, *joints, "--joint", "wrist_flex", "--to", "5"): held,
            ("recover", *port, *joints): held,
            ("calibrate-joints", *port, "--joints", str(tmp_path / "new.json")): held,
        }
        for words, message in asked.items():
            ran = subprocess.run(
                [sys.executable, "-m", "vla_edge.runtime.command", *words],
                stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240,
            )  # fmt: skip
            assert ran.returncode == 2 and message in ran.stderr.splitlines()[-1], (words, ran.stderr)
        assert not (tmp_path / "new.json").exists()
        assert drives(made.folder, str(made.emulator.port)) and not drives(made.folder, str(tmp_path / "other"))
        go_on(made)
        assert [entry for entry in made.emulator.entries("torque") if not entry["on"]] == []


@pytest.mark.parametrize("name", ["koch", "so101"])
def test_without_control_the_servos_that_shut_down_get_their_torque_back_where_they_are(
    tmp_path: Path, name: str
) -> None:
    """Settings and goals before torque; one that stays hot is refused, and the arm left as it is."""
    arm = load_arm(name)
    write_joints(tmp_path / "joints.json")
    calibration = load_joint_calibration(tmp_path / "joints.json", arm)
    stands = ["2048", "1700", "1900", "2100", "2300", "2500"]
    words = ("--arm", name, "--joints", str(tmp_path / "joints.json"), "--positions", *stands)
    with emulator_process(tmp_path, *words) as emulator:
        assert recover_alone(arm, str(emulator.port), calibration) == []
        emulator.event("overload 3")
        emulator.event("overload 6")
        before = len(emulator.entries("goal", "torque"))
        assert recover_alone(arm, str(emulator.port), calibration) == ["elbow_flex", "gripper"]
        log = emulator.entries("goal", "torque")[before:]
        on = [entry["id"] for entry in log if entry["kind"] == "torque" and entry["on"]]
        assert {3, 6} <= set(on)
        first = next(i for i, entry in enumerate(log) if entry["kind"] == "torque" and entry["on"])
        goals = [entry for entry in log[:first] if entry["kind"] == "goal"]
        assert [str(count) for count in goals[-1]["goals"].values()] == stands
        emulator.event("dump")
        held = emulator.entries("registers")[-1]["servos"]
        assert_torque_and_settings(arm, held)
        if name == "so101":  # whose errors are what is wrong now, not what was
            emulator.event("temperature 4 75")
            before = len(emulator.entries("torque"))
            with pytest.raises(BusError, match="wrist_flex.*overheating"):
                recover_alone(arm, str(emulator.port), calibration)
            assert not any(entry["on"] for entry in emulator.entries("torque")[before:])
