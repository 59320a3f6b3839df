"""`vla-train`: a table of subcommands, each a module's `add_…` and `run_…`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module

from vla_edge.errors import run_command, terminated_like_interrupted

START = "vla_edge.training.start"
SUBCOMMANDS = {
    "fine-tune": (
        START,
        "add_fine_tune",
        "run_fine_tune",
        "train from a LeRobot checkpoint (base policy, or delta expert and CLS head)",
    ),
    "scratch": (START, "add_scratch", "run_scratch", "train a new expert on a pretrained backbone"),
    "smoke": (START, "add_fine_tune", "run_smoke", "10 episodes, 100 steps: does everything fit together?"),
    "resume": (START, "add_resume", "run_resume", "continue an interrupted run exactly"),
    "anchors": (
        "vla_edge.training.sequential.phases_command",
        "add_anchors",
        "run_anchors",
        "build CRaFT's anchor cache from the starting checkpoint",
    ),
    "stages": (
        "vla_edge.training.sequential.phases_command",
        "add_stages",
        "run_stages",
        "tasks one after the other with replay (Kuavo), transfer matrix, forgetting",
    ),
    "evaluate": (
        "vla_edge.training.evaluate",
        "add_evaluate",
        "run_evaluate",
        "chunk errors on recorded episodes beside hold-last and mean-action",
    ),
    "compare": (
        "vla_edge.training.evaluate",
        "add_compare",
        "run_compare",
        "policies side by side: latency, parameters, error; PNG and table",
    ),
    "gate": (
        "vla_edge.training.cls_report",
        "add_gate",
        "run_gate",
        "what a trained CLS head sees: similarities, hit rate, AUROC, plot",
    ),
    "status": (
        "vla_edge.training.run_files",
        "add_status",
        "run_status",
        "step, loss, lr, time left, checkpoints, last error of a run",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(_main, argv)


def _main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="vla-train", description=__doc__)
    table = parser.add_subparsers(dest="subcommand", required=True, metavar="SUBCOMMAND")
    name = next((word for word in argv if not word.startswith("-")), "")
    for command, (module, add, _, purpose) in SUBCOMMANDS.items():
        child = table.add_parser(command, help=purpose, description=purpose)
        if command == name:
            getattr(import_module(module), add)(child)
    arguments = parser.parse_args(argv)
    module, _, run, _ = SUBCOMMANDS[arguments.subcommand]
    with terminated_like_interrupted():
        return int(getattr(import_module(module), run)(arguments))


if __name__ == "__main__":
    raise SystemExit(main())
