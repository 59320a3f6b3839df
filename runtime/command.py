"""`vla-runtime`: a table of subcommands; `run` is the default."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from vla_edge.errors import run_command

SUBCOMMANDS = {
    "run": ("vla_edge.runtime.control.supervisor", "start control and inference and move the arm (default)"),
    "control": ("vla_edge.runtime.control.control_process", "the control process alone"),
    "inference": ("vla_edge.runtime.control.inference_process", "the inference process alone"),
    "status": (
        "vla_edge.runtime.control.operator",
        "state, rates, ages, faults and latches of the running control process",
    ),
    "arm": ("vla_edge.runtime.control.operator", "let chunks move the arm; also after a latched hold or a fault"),
    "hold": ("vla_edge.runtime.control.operator", "slow down and hold, torque on"),
    "park": ("vla_edge.runtime.control.operator", "move slowly to the parking pose and hold"),
    "stop": ("vla_edge.runtime.control.operator", "slow down, park where a pose is stored, end the control process"),
    "torque-off": ("vla_edge.runtime.control.operator", "switch torque off (parked, or --now)"),
    "replay": (
        "vla_edge.runtime.records.replay",
        "compute a record's goals and chunks again and compare; export its episodes",
    ),
    "report": (
        "vla_edge.runtime.records.report",
        "one HTML page on a record: timing, blame of each missed tick, cache",
    ),
    "serve": (
        "vla_edge.runtime.service.serve",
        "the policy for clients over the network, and the robot's status in a browser",
    ),
    "infer": ("vla_edge.runtime.inference.infer", "one observation in, actions out"),
    "calibrate-joints": (
        "vla_edge.robot.calibrate_joints",
        "guide a person through the joint calibration, with live counts",
    ),
    "move": ("vla_edge.robot.first_contact", "first contact: one joint, slowly; store or go to the parking pose"),
    "lockstep": ("vla_edge.trials.lockstep_run", "one episode on the simulated arm, on a simulated clock"),
    "identity": ("vla_edge.trials.identity_check", "compare a bundle with the arm's calibration and a data set"),
    "cameras": ("vla_edge.robot.camera_report", "which camera is which device, with a picture of each"),
}


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(_main, argv)


def _main(argv: Sequence[str]) -> int:
    words = list(argv)
    if words and words[0] in ("-h", "--help"):
        print("usage: vla-runtime [SUBCOMMAND] [options]\n\nsubcommands (each has --help):")
        for name, (_, purpose) in SUBCOMMANDS.items():
            print(f"  {name:<18}{purpose}")
        return 0
    name = words.pop(0) if words and words[0] in SUBCOMMANDS else "run"
    module = import_module(SUBCOMMANDS[name][0])
    parser = argparse.ArgumentParser(prog=f"vla-runtime {name}", description=SUBCOMMANDS[name][1])
    module.add_arguments(parser)
    return int(module.run(parser.parse_args(words)))


if __name__ == "__main__":
    sys.exit(main())
