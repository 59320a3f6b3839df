# SPDX-License-Identifier: Apache-2.0
"""`vla-runtime`: a table of subcommands; `run` is the default."""

from __future__ import annotations

import sys

from vla_edge.command_line import Command, Subcommand

CONTROL, OPERATOR = "vla_edge.runtime.control", "vla_edge.runtime.control.operator"
RECORDS, TRIALS = "vla_edge.runtime.records", "vla_edge.trials"

main = Command(
    "vla-runtime",
    "Run a policy on the arm, say what it does, look at what it did.",
    {
        "run": Subcommand(
            f"{CONTROL}.supervisor",
            "start control and inference and move the arm",
            '--robot sim --bundle BUNDLE --task "reach the red cube" --seconds 10',
        ),
        "demo": Subcommand(
            "vla_edge.benchmarks.demo",
            "a policy that learnt to reach a cube moves a simulated arm, three times",
            "demo --out demo",
        ),
        "setup": Subcommand(
            "vla_edge.robot.setup_robot",
            "find the arm's port, its joint calibration and the cameras, and write robot.yaml for every other command",
            "setup --bundle BUNDLE",
        ),
        "install-service": Subcommand(
            "vla_edge.runtime.service.install_service",
            "let systemd run control and inference on this robot, from its robot.yaml",
            "install-service --robot-file robot.yaml",
        ),
        "uninstall-service": Subcommand(
            "vla_edge.runtime.service.install_service",
            "remove what install-service wrote",
            "uninstall-service",
            add="add_uninstall_arguments",
            run="run_uninstall",
        ),
        "control": Subcommand(
            f"{CONTROL}.control_process",
            "the control process alone",
            "control --bundle BUNDLE --port /dev/serial/by-id/usb-... --joints follower.json",
        ),
        "inference": Subcommand(
            f"{CONTROL}.inference_process",
            "the inference process alone",
            'inference --bundle BUNDLE --task "pick up the cube" --camera front=/dev/video0',
        ),
        "status": Subcommand(OPERATOR, "state, rates, ages, faults and latches of the control process", "status"),
        "arm": Subcommand(OPERATOR, "let chunks move the arm; also after a latched hold or a fault", "arm"),
        "hold": Subcommand(OPERATOR, "slow down and hold, torque on", "hold"),
        "park": Subcommand(OPERATOR, "move slowly to the parking pose and hold", "park"),
        "stop": Subcommand(OPERATOR, "slow down, park where a pose is stored, end the control process", "stop"),
        "torque-off": Subcommand(OPERATOR, "switch torque off (parked, or --now)", "torque-off"),
        "recover": Subcommand(
            f"{CONTROL}.recover",
            "restart servos with an alert, torque at the present position, hold; with control running or without",
            "recover --port /dev/serial/by-id/usb-... --joints follower.json",
        ),
        "replay": Subcommand(
            f"{RECORDS}.replay",
            "compute a record's goals and chunks again and compare; export its episodes",
            "replay RUN/flight.record --inputs inputs.record --export DATASET",
        ),
        "report": Subcommand(
            f"{RECORDS}.report",
            "one HTML page on a record: timing, why each tick was missed, cache",
            "report RUN/flight.record --out report.html",
        ),
        "serve": Subcommand(
            "vla_edge.runtime.service.serve",
            "the policy for clients over the network, and the robot's status in a browser",
            "serve --bundle BUNDLE --port 8000",
        ),
        "infer": Subcommand(
            "vla_edge.runtime.inference.infer",
            "one observation file in, one file of actions out",
            "infer --bundle BUNDLE --observation observation.npz --out actions.npz",
        ),
        "calibrate-joints": Subcommand(
            "vla_edge.robot.calibrate_joints",
            "guide a person through the joint calibration, with live counts",
            "calibrate-joints --port /dev/serial/by-id/usb-... --joints follower.json",
        ),
        "move": Subcommand(
            "vla_edge.robot.first_contact",
            "first contact: move one joint slowly; store the parking pose or go to it",
            "move --port /dev/serial/by-id/usb-... --joints follower.json --joint gripper --to 20",
        ),
        "lockstep": Subcommand(
            f"{TRIALS}.lockstep_run",
            "one episode on the simulated arm, on a simulated clock",
            'lockstep --bundle BUNDLE --task "reach the red cube" --video run.mp4',
        ),
        "identity": Subcommand(
            f"{TRIALS}.identity_check",
            "compare a bundle with the arm's joint calibration and with a dataset",
            "identity --bundle BUNDLE --joints follower.json --dataset DATASET",
        ),
        "cameras": Subcommand(
            "vla_edge.robot.camera_report",
            "which camera is which device, with a picture of each",
            "cameras --out cameras.png",
        ),
    },
    default="run",
    old={
        "--engine": "--backend",
        "--units": "--joint-units",
        "--policy": "--cache",
        "--steps": "--flow-steps",
        "--least-steps": "--least-flow-steps",
        "--record": "--video",
        "--arm": "--arm-at-start",
        "--cache always": "--cache off",
        "--cache guard": "--cache still",
        "--cache cls": "--cache gated",
    },  # fmt: skip
    terminable=False,
)

if __name__ == "__main__":
    sys.exit(main())
