# SPDX-License-Identifier: Apache-2.0
"""`vla-runtime move`: one joint of a new arm, slowly, with a person beside it; and the parking pose."""

from __future__ import annotations

import argparse
from pathlib import Path

from vla_edge.command_line import answer, between
from vla_edge.errors import ConfigError
from vla_edge.robot.arm_description import load_arm
from vla_edge.robot.joint_calibration import JointUnits, counts_from_unit, load_joint_calibration, unit_from_counts
from vla_edge.robot.robot_file import add_arm, add_port, add_robot_file
from vla_edge.robot.servo_arm import ArmOptions, open_arm
from vla_edge.robot.slow_motion import SlowLimits, load_park_pose, move_slowly, save_park_pose

FIRST_CONTACT_VELOCITY = 670.0
"""counts/s: 60°/s with the margin of the servos' own limit, twice the fastest ramp allowed here."""
DEGREES_PER_S = (1.0, 30.0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_arm(parser)
    add_port(parser)
    parser.add_argument("--joints", type=Path, required=True, help="joint calibration of this arm (LeRobot's JSON)")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--joint", help="the joint to move; the others hold")
    what.add_argument("--park", action="store_true", help="move to the parking pose, then switch torque off")
    what.add_argument("--store-park", action="store_true", help="store where the limp arm rests as the parking pose")
    parser.add_argument("--to", type=float, help="joint value in --joint-units")
    parser.add_argument(
        "--joint-units",
        choices=[units.value for units in JointUnits],
        default=JointUnits.DEGREES.value,
        help="unit of --to",
    )
    parser.add_argument("--speed", type=between(*DEGREES_PER_S), default=15.0, help="degrees per second, 1 to 30")
    add_robot_file(parser)


def run(arguments: argparse.Namespace) -> int:
    if (arguments.joint is None) != (arguments.to is None):
        raise ConfigError("--joint and --to belong together; give both")
    arm = load_arm(arguments.robot)
    if arguments.joint is not None and arguments.joint not in arm.joint_names:
        raise ConfigError(f"--joint {arguments.joint}: {arm.title} has {', '.join(arm.joint_names)}")
    calibration = load_joint_calibration(arguments.joints, arm)
    units = JointUnits(arguments.joint_units)
    options = ArmOptions(
        arm, arguments.port, calibration, velocity=FIRST_CONTACT_VELOCITY, write=not arguments.store_park
    )
    limits = SlowLimits(speed=arguments.speed * arm.counts_per_turn / 360)
    goal: dict[str, int] = {}
    if arguments.park:
        goal = load_park_pose(calibration)
    elif arguments.joint:
        goal = {
            arguments.joint: counts_from_unit(calibration.joint(arguments.joint), units, arguments.to, arm.truncates)
        }
    follower = open_arm(options)
    try:
        if arguments.store_park:
            positions = follower.read().positions
            print(f"parking pose stored in {save_park_pose(calibration, positions)}")
        else:
            for turn in sorted({arm.park_turn(name) for name in goal}) if arguments.park else [len(arm.parking)]:
                soon = {name: counts for name, counts in goal.items() if arm.park_turn(name) <= turn}
                positions = move_slowly(follower, soon, limits)
            if arguments.park:
                follower.set_torque(False)
                print("parked; torque is off")
            else:
                print(
                    f"{arguments.joint} arrived; torque stays on and the servos hold: `vla-runtime move --park` lets "
                    "go safely"
                )
    finally:
        follower.close()
    values = {joint.name: unit_from_counts(joint, units, at) for joint, at in zip(calibration.joints, positions)}
    answer({"positions": values, "counts": dict(zip(arm.joint_names, positions)), "units": units.value})
    return 0
