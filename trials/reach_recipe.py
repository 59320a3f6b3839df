# SPDX-License-Identifier: Apache-2.0
"""What the recipes of the reaching task share: schedule, optimiser step, averaged weights, held-out error, and the
command line."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vla_edge.command_line import count, folder_to_write, threads, whole
from vla_edge.command_parser import CommandParser
from vla_edge.errors import TrainingError
from vla_edge.robot.sim.scene import BODIES
from vla_edge.trials.reach_data import ReachRecording, record_reach_dataset
from vla_edge.trials.reach_examples import Examples

FLAGS: Mapping[str, tuple[str, Callable[[str], int]]] = {
    "warmup_steps": ("--warmup-steps", whole),
    "steps": ("--steps", count),
    "flow_steps": ("--flow-steps", count),
    "held_out_scenes": ("--held-out", whole),
    "seed": ("--seed", whole),
    "threads": ("--threads", threads),
}
"""The flag of a recipe's field, where it has this field."""


@dataclass(frozen=True, slots=True)
class AnyRecipe:
    """What both recipes have, with the seed of everything random."""

    warmup_loss_weight: float = 0.5
    weight_decay: float = 0.01
    grad_clip_norm: float = 1.0
    ema: float = 0.995
    held_out_scenes: int = 40
    seed: int = 0
    threads: int = 1


def run_recipe(
    argv: Sequence[str],
    module: str,
    description: str,
    out: str,
    train: Callable[[Path, Path, Any], Mapping[str, float]],
    recipe: Any,
) -> int:
    """Parse a recipe's command line, record its dataset when it is not there, train, print what was measured. out:
    what --out becomes. recipe: its dataclass, whose values are the flags' defaults."""
    parser = CommandParser(prog=f"python -m vla_edge.trials.{module}", description=description)
    parser.add_argument(
        "--dataset", type=Path, required=True, help="dataset of the task; recorded there when it does not exist"
    )
    parser.add_argument("--out", type=folder_to_write, required=True, help=out)
    parser.add_argument("--scenes", type=count, default=ReachRecording().scenes, help="scenes to record")
    parser.add_argument("--arm", choices=sorted(BODIES), default=ReachRecording().arm, help="the arm to record")
    fields = {name: flag for name, flag in FLAGS.items() if hasattr(recipe, name)}
    for name, (flag, kind) in fields.items():
        parser.add_argument(flag, dest=name, type=kind, default=getattr(recipe, name))
    arguments = parser.parse_args(argv)
    if not arguments.dataset.exists():
        record_reach_dataset(arguments.dataset, ReachRecording(arguments.scenes, arm=arguments.arm))
    given = {name: getattr(arguments, name) for name in fields}
    result = train(arguments.dataset, arguments.out, replace(recipe, **given))
    print(f"{arguments.out}: {', '.join(f'{name} {value:.4g}' for name, value in result.items())}")
    return 0


def descend(
    optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], loss: Tensor, lr: float, grad_clip_norm: float
) -> None:
    """One step of the optimiser at this learning rate, gradients clipped. TrainingError: the loss is not finite."""
    if not torch.isfinite(loss):
        raise TrainingError(
            f"the loss is {float(loss.detach())} at learning rate {lr:.1e}; lower the learning rate or check the "
            "data with vla-data verify"
        )
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, grad_clip_norm)
    optimizer.step()


@torch.no_grad()
def average_into(average: Mapping[str, Tensor], weights: Mapping[str, Tensor], decay: float, step: int) -> None:
    """The running mean of the weights, after `step`. It forgets its first values faster than `decay` says, as long as
    there are few."""
    keep = min(decay, (step + 1) / (step + 10))
    for name, mean in average.items():
        mean.lerp_(weights[name], 1 - keep)


def ramp(step: int) -> float:
    """Share of the peak learning rate in the first steps, 0 to 1."""
    return min(1.0, (step + 1) / 50)


def cosine(step: int, steps: int) -> float:
    """Share of the peak learning rate that falls from 1 to 0 over the steps."""
    return 0.5 + 0.5 * math.cos(math.pi * step / steps)


def timed_steps(count: int) -> Iterator[tuple[int, float]]:
    """(step, seconds the step before took)."""
    last = time.monotonic()
    for step in range(count):
        now = time.monotonic()
        yield step, now - last
        last = now


def held_out_picks(examples: Examples) -> Sequence[Tensor]:
    """Every fourth observation of the held-out scenes, in batches."""
    return torch.arange(examples.training, len(examples.states), 4).split(64)


def error_facts(error: Tensor) -> dict[str, float]:
    """What is told of |Δ| [N, C, A] between made and real chunks, in joint units."""
    return {
        "chunk_error": float(error.mean()),
        "last_action_error": float(error[:, -1].mean()),
        "pan_error": float(error[:, -1, 0].mean()),
    }
