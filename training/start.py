# SPDX-License-Identifier: Apache-2.0
"""`vla-train fine-tune | distill | scratch | smoke | resume`: what they call and print."""

from __future__ import annotations

import argparse

from vla_edge.command_line import answer
from vla_edge.errors import CheckFailed, ConfigError
from vla_edge.fields import read_object
from vla_edge.training.arguments import DISTILL, FINE_TUNE, SMOKE, scratch_defaults
from vla_edge.training.checkpoints import RUN_FILE, STATE, last_checkpoint, step_of
from vla_edge.training.frozen.caches import fill_caches
from vla_edge.training.loop_inputs import Setup
from vla_edge.training.objective import Objective
from vla_edge.training.options import config_from_arguments, print_notes, print_outcome, reporter
from vla_edge.training.processes import is_first, join, make_accelerator
from vla_edge.training.run_config import read_config
from vla_edge.training.run_files import run_folder
from vla_edge.training.runs import SMOKE_EPISODES, begin, prepare, prepare_scratch, resume
from vla_edge.training.validation import validation_losses, weighted

PROBED, FALLEN = 16, 0.995
"""Frames that a smoke run's loss is compared on, and the share of it that counts as fallen."""


def run_fine_tune(arguments: argparse.Namespace) -> int:
    config = config_from_arguments(arguments, checkpoint_of_arguments(arguments), FINE_TUNE, arguments.kind)
    return train_prepared(prepare(config), "fine-tune")


def run_distill(arguments: argparse.Namespace) -> int:
    usual = {**DISTILL, "num_steps": arguments.flow_steps}
    config = config_from_arguments(arguments, checkpoint_of_arguments(arguments), usual, "distill")
    if config.num_steps != arguments.flow_steps:
        raise ConfigError(
            f"num_steps is given by --flow-steps {arguments.flow_steps}; leave it out of --set and --config"
        )
    return train_prepared(prepare(config), "distill")


def run_smoke(arguments: argparse.Namespace) -> int:
    config = config_from_arguments(arguments, checkpoint_of_arguments(arguments), SMOKE, arguments.kind, SMOKE_EPISODES)
    setup = prepare(config)
    before = probe(setup)
    train_prepared(setup, "smoke run")
    after = probe(setup)
    line = f"{before:.4f} → {after:.4f} on {PROBED} frames it trained on, under the same noise"
    if is_first():
        answer({"loss_before": before, "loss_after": after})
    if not after < FALLEN * before:
        raise CheckFailed(
            f"the loss did not fall by {1 - FALLEN:.1%} in {config.steps} steps: {line}; look at the data with "
            f"`vla-data verify`, then at --lr (now {config.optimizer.lr:g})"
        )
    if is_first():
        print(f"the loss fell: {line}")
    return 0


def probe(setup: Setup) -> float:
    """The loss on frames that are trained on, always the same under the same noise: it differs by the weights alone."""
    device = make_accelerator(setup.config.device).device
    fill_caches(setup.config, setup.policy, setup.training, device)
    objective = Objective(setup.policy.to(device), setup.config.padded_dims)
    losses = validation_losses(objective, setup.training, PROBED, setup.config.batch_size, device)
    return weighted(losses, {task.name: task.weight for task in setup.config.data})


def checkpoint_of_arguments(arguments: argparse.Namespace) -> str:
    """The policy to start from, as one text: a path, or a Hub id with its revision."""
    return f"{arguments.checkpoint}@{arguments.revision}" if arguments.revision else str(arguments.checkpoint)


def train_prepared(setup: Setup, title: str) -> int:
    """Say what there is to know about the run, train it, say how it ended."""
    print_notes(setup.notes)
    with reporter(0, setup.config.steps, title, setup.config.log_every) as report:
        outcome = begin(setup, report)
    print_outcome(outcome)
    return 0


def run_scratch(arguments: argparse.Namespace) -> int:
    config = config_from_arguments(arguments, arguments.backbone, scratch_defaults(arguments.family))
    file = arguments.policy_config
    fields = {} if file is None else read_object(file, ConfigError, "write the policy's fields as one object")
    return train_prepared(prepare_scratch(config, fields, arguments.family), "from scratch")


def run_resume(arguments: argparse.Namespace) -> int:
    run = run_folder(arguments.run)
    if not (run / RUN_FILE).is_file():
        raise ConfigError(f"{run}: no run of vla-train ({RUN_FILE} is missing); give the folder that --out named")
    config = read_config(last_checkpoint(run) / STATE / RUN_FILE)
    join(config.device)
    with reporter(step_of(last_checkpoint(run)), config.steps, "resumed", config.log_every) as report:
        _, outcome = resume(run, report, arguments.dataset)
    print_outcome(outcome)
    return 0
