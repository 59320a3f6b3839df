# SPDX-License-Identifier: Apache-2.0
"""The control process: checks, then one C call until it is stopped."""

from __future__ import annotations

import argparse
import os
import platform
import secrets
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from vla_edge.bundle import open_bundle
from vla_edge.command_line import answer, between, not_negative
from vla_edge.core import load_core
from vla_edge.errors import BusError, CheckFailed, ConfigError, ControlError
from vla_edge.files import write_json
from vla_edge.robot.arm_description import ArmDescription, load_arm
from vla_edge.robot.joint_calibration import JointCalibrations, JointUnits, linear_map, load_joint_calibration
from vla_edge.robot.port import gone
from vla_edge.robot.robot_file import add_arm, add_robot_file
from vla_edge.runtime.control.children import end_with, guarded
from vla_edge.runtime.control.control_settings import (
    HZ_OF_UNKNOWN,
    LIMIT_ERRORS,
    MAX_HZ,
    MIN_HZ,
    NS,
    RECORD_CELLS,
    ControlSettings,
    JointLimits,
    LoopFiles,
    period_ns_of,
    rate_of,
)
from vla_edge.runtime.control.faults import fault_of
from vla_edge.runtime.control.handover import add_handover_arguments, handover_of
from vla_edge.runtime.control.identity import check_joints, units_of
from vla_edge.runtime.control.run_folder import keep_old_records, listen, lock_for_control, note_run, open_run_folder
from vla_edge.runtime.control.run_options import ControlOptions, options_of_arguments
from vla_edge.runtime.inference.units import read_tables

SLACK_BYTES = 1 << 20
"""For the run folder's other files."""
LAST_READINGS = 3
"""Ticks without a reading before the end that say a servo is silent."""
STALL_BEYOND = 20
"""Counts beyond the gravity lead at which a joint that does not move is blocked."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_arm(parser)
    add_robot_arguments(parser)
    parser.add_argument("--run-dir", type=Path, help="folder shared with inference and operators")
    parser.add_argument("--arm-at-start", action="store_true", help="arm by itself once every check has passed")
    parser.add_argument("--seconds", type=not_negative, default=0.0, help="stop by itself after so long; 0: never")
    parser.add_argument(
        "--attended", action="store_true", help="hold when the supervisor's heartbeat in the run folder is silent"
    )
    parser.add_argument(
        "--parent", type=int, metavar="PID", help="the process that started this one: stop when it dies"
    )
    add_robot_file(parser, by_itself=False)


def add_robot_arguments(parser: argparse.ArgumentParser) -> None:
    """What `run` takes too."""
    parser.add_argument("--bundle", type=Path, required=True, help="folder written by export-engines")
    arm = parser.add_argument_group("the arm and how it may move")
    arm.add_argument(
        "--port", help="serial port of the follower, best its /dev/serial/by-id path; LEFT,RIGHT of two arms"
    )
    arm.add_argument("--joints", type=Path, help="joint calibration of this arm (LeRobot's JSON)")
    arm.add_argument(
        "--joint-units", choices=[unit.value for unit in JointUnits], help="joint units, where the bundle does not say"
    )
    arm.add_argument(
        "--hz",
        type=between(MIN_HZ, MAX_HZ),
        help="control ticks a second, 6 to 100; the policy's speed does not depend on it (default: 90 where the servos "
        "answer fast enough, else 45, else the data's rate; 30 where that is unknown)",
    )
    add_handover_arguments(arm)
    arm.add_argument("--speed", type=between(0.05, 2), default=1.0, help="share of the velocity limits, 0.05 to 2")
    arm.add_argument(
        "--servo-limits", action="store_true", help="speed and force near what the servos can do (default: half of it)"
    )
    arm.add_argument(
        "--park-after",
        type=not_negative,
        default=10.0,
        metavar="MINUTES",
        help="park when nothing was planned for so long, where a parking pose is stored; 0: never",
    )
    arm.add_argument("--shadow", action="store_true", help="compute and record everything, write nothing to the arm")


def limits_of(
    arm: ArmDescription,
    calibration: JointCalibrations,
    units: JointUnits,
    speed: float = 1.0,
    servo_limits: bool = False,
) -> tuple[JointLimits, ...]:
    """The guard's limits of a calibrated arm: its ranges, and the described speeds times `speed`.

    servo_limits: near what the servos themselves can do, instead of the gentler ones.
    """
    motion = arm.servo_limits if servo_limits else arm.limits
    limits = []
    for joint in calibration.joints:
        line = linear_map(joint, units)
        tracking = motion.gripper_tracking if joint.grips else motion.tracking
        gravity, kind = arm.joint(joint.name).gravity, arm.kind(joint.name)
        voltage_min, voltage_max = kind.tenths
        limits.append(
            JointLimits(
                joint.range_min,
                joint.range_max,
                line.scale,
                line.offset,
                velocity=motion.velocity * speed,
                acceleration=motion.acceleration,
                tracking=tracking,
                gravity=gravity,
                stall=0 if joint.grips else min(gravity + STALL_BEYOND, tracking - 4),
                temperature=kind.max_celsius,
                voltage_min=voltage_min,
                voltage_max=voltage_max,
                name=joint.name,
                park_turn=arm.park_turn(joint.name),
            )
        )
    return tuple(limits)


def run(arguments: argparse.Namespace) -> int:
    options = options_of_arguments(ControlOptions, arguments)
    if options.port is None or options.joints is None:
        raise ConfigError("the control process needs --port and --joints")
    end_with(options.parent)
    if options.parent is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # but in the loop: the supervisor's, whenever it comes
    bundle = open_bundle(options.bundle)
    arm = load_arm(options.robot)
    calibration = load_joint_calibration(options.joints, arm)
    tables = read_tables(bundle)
    units, guess = units_of(bundle, options.joint_units, arm, tables, calibration)
    if guess is not None:
        print(f"note: {guess}", file=sys.stderr)
    check_joints(bundle, tables, arm, calibration, units)
    settings = ControlSettings(
        limits=limits_of(arm, calibration, units, options.speed, options.servo_limits),
        period_ns=period_ns_of(options.hz or HZ_OF_UNKNOWN),  # until the servos have been asked
        session=secrets.randbits(62),  # no other run has it: chunks of other runs are refused by it
        bundle_digest=bundle.digest,
        blend_actions=handover_of(options.handover, options.inpaint_horizon, bundle.manifest).kind.blend_actions,
        park=_park_pose(calibration),
        arm=arm.name,
        arm_digest=arm.digest,
        buses=arm.buses,
    )
    result, status = control_arm(options, arm, calibration, units, settings, bundle.manifest.fps)
    answer({"result": result, **status})
    if result == "unplugged":
        raise BusError(f"the adapter at {gone(options.port)} is gone; plug it in and start again, it will be disarmed")
    if status.get("ailing") and options.parent is None:
        raise CheckFailed(fault_of(status, status["ailing"]) or str(status["ailing"]))
    return 0


def control_arm(
    options: ControlOptions,
    description: ArmDescription,
    calibration: JointCalibrations,
    units: JointUnits,
    settings: ControlSettings,
    fps: float | None,
) -> tuple[str, Mapping[str, Any]]:
    """Check the arm and run the loop at the rate that its bus allows; how it ended, and the last status."""
    from vla_edge.robot.servo_arm import ArmOptions, open_arm

    assert options.port is not None
    core = load_core()
    folder = open_run_folder(options.run_dir)
    lock = lock_for_control(folder)
    note_run(folder)
    write_json(folder.arm, arm_facts(options, description, calibration, units, settings), flush=False)
    try:
        fastest = max(limit.velocity for limit in settings.limits)
        arm = open_arm(ArmOptions(description, options.port, calibration, fastest, write=not options.shadow))
        try:
            rate = rate_of(arm.reading_s, options.hz, fps, lambda hz: core.control_answer_ns(period_ns_of(hz)) / NS)
            print(f"note: {rate.sentence()}", file=sys.stderr)
            limits = tuple(
                replace(limit, voltage_min=low, voltage_max=high)
                for limit, (low, high) in zip(settings.limits, arm.supply)
            )
            settings = replace(settings, limits=limits, period_ns=rate.period_ns, action_ns=rate.action_ns)
            record_bytes = core.record_bytes(RECORD_CELLS, len(limits))
            for removed in keep_old_records(folder, record_bytes + SLACK_BYTES):
                print(f"note: {removed} was removed, as {folder.path} has no space for one more", file=sys.stderr)
            alone = description.has_watchdog or options.shadow
            guardian = nullcontext(arm) if alone else guarded(arm, settings.period_ns, close=(lock,))
            with guardian as port_of_loop, listen(folder) as listener, stop_signals() as signal_fd:
                files = LoopFiles(
                    ring=folder.ring,
                    state=folder.state,
                    record=folder.record,
                    socket_fd=listener.fileno(),
                    signal_fd=signal_fd,
                    interrupt_ends=not sys.stdin.isatty(),
                    beat=folder.beat if options.attended else None,
                    shadow=options.shadow,
                    arm_at_start=options.arm_at_start,
                    stop_after_ticks=round(options.seconds * NS / settings.period_ns),
                    park_after_ns=round(options.park_after * 60 * NS),
                )
                result = run_loop(core, port_of_loop, settings, files)
            status: dict[str, Any] = core.StateReader(folder.state).read()
            if result != "unplugged" and not answers(status):
                status["ailing"] = arm.ailing()
        finally:
            folder.socket.unlink(missing_ok=True)
            arm.close()
    finally:
        os.close(lock)
    return result, status


def arm_facts(
    options: ControlOptions,
    description: ArmDescription,
    calibration: JointCalibrations,
    units: JointUnits,
    settings: ControlSettings,
) -> dict[str, Any]:
    """What the status page and the report say of the arm, its limits and this machine. limits: by joint, in joint units
    and seconds."""
    limits = {
        limit.name: {
            "low": min((bound - limit.offset) / limit.scale for bound in (limit.position_min, limit.position_max)),
            "high": max((bound - limit.offset) / limit.scale for bound in (limit.position_min, limit.position_max)),
            "velocity": limit.velocity / abs(limit.scale),
            "acceleration": limit.acceleration / abs(limit.scale),
        }
        for limit in settings.limits
    }
    machine = f"{platform.node()}, {platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}"
    arm: dict[str, Any] = {"arm": description.name, "arm_digest": description.digest, "port": options.port}
    arm |= {"joints": calibration.source, "joint_units": units.value, "shadow": options.shadow}
    return {"session": settings.session, **arm, "machine": machine, "limits": limits}


def answers(status: Mapping[str, Any]) -> bool:
    """Whether every servo was heard at the end, and none with an alert."""
    return status["tick"] - status["reading_tick"] <= LAST_READINGS and status["reason"] not in ("alert", "torque")


def run_loop(core: Any, arm: Any, settings: ControlSettings, files: LoopFiles) -> str:
    """The C loop, its refusals in our words."""
    try:
        return str(core.control_run(arm, settings, files))
    except ValueError as error:
        if len(error.args) != 2:
            raise
        kind, joint = error.args
        raise ConfigError(
            f"{settings.limits[joint].name}: {LIMIT_ERRORS[kind]}; raise the limit or lower --hz"
        ) from None
    except OSError as error:
        raise ControlError(f"{error.filename}: {error.strerror}; give another --run-dir") from error


@contextmanager
def stop_signals() -> Iterator[int]:
    """Within the block SIGINT and SIGTERM only put their number into the pipe whose reading end is given.

    The interpreter's C handler writes it, on whatever thread the signal arrives; the loop reads it in its tick.
    """
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    wakeup = signal.set_wakeup_fd(writing)
    try:
        yield reading
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reading)
        os.close(writing)


def _park_pose(calibration: JointCalibrations) -> tuple[int, ...] | None:
    from vla_edge.robot.slow_motion import load_park_pose, park_pose_path

    if not park_pose_path(calibration).exists():
        return None
    pose = load_park_pose(calibration)
    return tuple(pose[joint.name] for joint in calibration.joints)
