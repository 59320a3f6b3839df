# SPDX-License-Identifier: Apache-2.0
"""`vla-runtime recover`: servos that shut down by themselves start anew and hold the arm where it is.

Where a control process runs it has the servo bus, and is asked; otherwise this process does it over `--port`. Nothing
moves: every servo gets its settings back, and its torque with the goal at the present position.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from vla_edge.command_line import answer
from vla_edge.errors import BusError, CheckFailed, ConfigError
from vla_edge.robot.arm_description import ArmDescription, load_arm
from vla_edge.robot.joint_calibration import JointCalibrations, load_joint_calibration
from vla_edge.robot.port import check_latency_timer
from vla_edge.robot.robot_file import add_arm, add_robot_file
from vla_edge.robot.servo_arm import ArmOptions, open_arm
from vla_edge.robot.servo_bus import ServoBus
from vla_edge.runtime.control.faults import fault_of
from vla_edge.runtime.control.operator import REFUSALS, ask, read_status
from vla_edge.runtime.control.run_folder import RunFolder, control_runs, last_run_folder, open_run_folder

RECOVER_S = 10.0
"""Longest time until control holds again: a reboot takes less than a second."""
REBOOT_S, REBOOT_TRIES = 0.02, 4
BACK_S = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--run-dir", type=Path, help="run folder of the control process, where one runs (default: the last run's)"
    )
    add_arm(parser)
    parser.add_argument("--port", help="serial port of the follower, where no control process runs")
    parser.add_argument("--joints", type=Path, help="joint calibration of this arm, with --port")
    add_robot_file(parser)


def run(arguments: argparse.Namespace) -> int:
    if (arguments.port is None) != (arguments.joints is None):
        raise ConfigError("--port and --joints belong together; give both, or none where control runs")
    folder = open_run_folder(arguments.run_dir or last_run_folder())
    arm = load_arm(arguments.robot)
    if arguments.port is None or drives(folder, arguments.port):
        reply = recover_running(folder)
    else:
        names = recover_alone(arm, arguments.port, load_joint_calibration(arguments.joints, arm))
        found = f"{', '.join(names)} started anew" if names else "no servo reports a hardware error"
        reply = f"{found}; torque is on where the arm is"
    print(reply)
    answer({"recovered": reply})
    return 0


def drives(folder: RunFolder, port: str) -> bool:
    """Whether the control process of `folder` runs and drives the arm at this port, and not another one."""
    if not control_runs(folder):
        return False
    try:
        of_control = json.loads(folder.arm.read_bytes())["port"]
    except FileNotFoundError:  # it starts: it is asked, and says so
        return True
    real = [[os.path.realpath(side) for side in ports.split(",")] for ports in (port, of_control)]
    return real[0] == real[1]


def recover_running(folder: RunFolder) -> str:
    """Through the control process. CheckFailed: it refuses, or the fault stays."""
    reply = ask(folder, "recover", timeout_s=RECOVER_S)
    if reply.word != "done":
        raise CheckFailed(f"recover: {REFUSALS.get(reply.word, reply.word)}")
    if reply.state != "fault" and not reply.reason:
        return f"nothing to recover: control is {reply.state}"
    end_s = time.monotonic() + RECOVER_S
    while (status := read_status(folder))["state"] == "fault":
        if time.monotonic() > end_s:
            raise CheckFailed(f"recover: the fault is still there: {fault_of(status)}")
        time.sleep(0.05)
    return f"recovered: control is in {status['state']}; `vla-runtime arm` goes on, `vla-runtime park` parks"


def recover_alone(
    arm: ArmDescription, port: str, calibration: JointCalibrations, sleep: Callable[[float], None] = time.sleep
) -> list[str]:
    """Reboot the servos with a hardware error, check and configure the arm, torque at the present position; the joints
    that were rebooted. Errors: BusError, JointCalibrationError."""
    check_latency_timer(port)
    bus = ServoBus(port, arm, {joint.name: joint.id for joint in calibration.joints})
    try:
        names = [joint for joint, errors in bus.errors().items() if errors]
        for joint in names:
            for _ in range(REBOOT_TRIES):  # not every firmware answers before it starts anew
                bus.start_anew(joint, REBOOT_S)
                sleep(BACK_S / REBOOT_TRIES)
                if bus.ping(joint)[joint] is not None:
                    break
            else:
                raise BusError(f"{joint} does not come back after a reboot; switch the servos' power off and on")
    finally:
        bus.close()
    follower = open_arm(ArmOptions(arm, port, calibration))
    try:
        follower.set_torque(True)
    finally:
        follower.close()
    return names
