"""`vla-train fine-tune | delta | scratch | smoke | resume`: arguments and calls."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from vla_edge.errors import ConfigError
from vla_edge.training.checkpoints import RUN_FILE, STATE, last_checkpoint
from vla_edge.training.config import read_config
from vla_edge.training.options import add_training_arguments, config_from, print_outcome, reporter
from vla_edge.training.processes import join
from vla_edge.training.run_files import read_status
from vla_edge.training.runs import FINE_TUNE, SCRATCH, SMOKE, fine_tune, from_scratch, resume, smoke_data


def add_fine_tune(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--policy", required=True, help="LeRobot checkpoint folder to start from")
    parser.add_argument("--kind", choices=("base", "delta"), default="base", help="delta: CLS head and delta expert on a frozen policy")
    add_training_arguments(parser)


def run_fine_tune(arguments: argparse.Namespace) -> int:
    config = config_from(arguments, arguments.policy, FINE_TUNE, arguments.kind)
    with reporter(0, config.steps, "fine-tune") as report:
        setup, outcome = fine_tune(config, report)
    print_outcome(setup, outcome, arguments.json)
    return 0


def run_smoke(arguments: argparse.Namespace) -> int:
    config = smoke_data(config_from(arguments, arguments.policy, SMOKE, arguments.kind))
    with reporter(0, config.steps, "smoke run") as report:
        setup, outcome = fine_tune(config, report)
    print_outcome(setup, outcome, arguments.json)
    return 0


def add_scratch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--vlm", required=True, help="backbone folder with its weights (SmolVLM2)")
    parser.add_argument("--config", type=Path, help="JSON of policy configuration fields that differ from SmolVLA's defaults")
    add_training_arguments(parser)


def run_scratch(arguments: argparse.Namespace) -> int:
    config = config_from(arguments, arguments.vlm, SCRATCH)
    fields = policy_options(arguments.config)
    with reporter(0, config.steps, "from scratch") as report:
        setup, outcome = from_scratch(config, fields, report)
    print_outcome(setup, outcome, arguments.json)
    return 0


def add_resume(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--json", action="store_true", help="print a machine-readable last line")


def run_resume(arguments: argparse.Namespace) -> int:
    config = read_config(last_checkpoint(arguments.run) / STATE / RUN_FILE)
    join(config.device)
    with reporter(read_status(arguments.run).step, config.steps, "resumed") as report:
        setup, outcome = resume(arguments.run, report)
    print_outcome(setup, outcome, arguments.json)
    return 0


def policy_options(file: Path | None) -> dict[str, Any]:
    """The fields of a JSON file; ConfigError when it is unreadable or no object."""
    if file is None:
        return {}
    try:
        content = json.loads(file.read_text())
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(f"{file}: no JSON to read ({error}); write the policy's fields as one object") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{file}: holds no object; write the policy's fields as one object")
    return content
