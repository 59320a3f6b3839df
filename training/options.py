"""The flags of a training run, each a field of `TrainConfig`, and what `fine-tune`, `scratch`, `smoke` and `resume`
print."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any

from vla_edge.command_line import answer
from vla_edge.errors import ConfigError
from vla_edge.training.craft.conflict_projection import LOSSES, MERGES
from vla_edge.training.loop import Outcome
from vla_edge.training.processes import is_first, join
from vla_edge.training.progress import Report, live_line, silent
from vla_edge.training.run_config import CHOICES, TaskData, TrainConfig, with_values
from vla_edge.training.runs import first_episodes, with_held_out

FIELDS = {
    "steps": (int, "steps", "optimiser steps"),
    "batch-size": (int, "batch_size", "samples per process and accumulation step"),
    "accumulation": (int, "accumulation", "batches per optimiser step"),
    "lr": (float, "optimizer.lr", "peak learning rate"),
    "weight-decay": (float, "optimizer.weight_decay", "AdamW weight decay"),
    "grad-clip": (float, "optimizer.grad_clip_norm", "largest gradient norm"),
    "warmup": (int, "schedule.warmup_steps", "warm-up steps"),
    "decay": (int, "schedule.decay_steps", "steps until the learning rate is at its lowest"),
    "decay-lr": (float, "schedule.decay_lr", "lowest learning rate"),
    "seed": (int, "seed", "seed of everything random"),
    "workers": (int, "workers", "loader processes"),
    "cache-mb": (int, "cache_mb", "decoded pictures kept in memory per process"),
    "save-every": (int, "save_every", "steps between checkpoints"),
    "log-every": (int, "log_every", "steps between metrics"),
    "validate-every": (int, "validate_every", "steps between validations, 0 never"),
    "validation-frames": (int, "validation_frames", "held-out frames per validation and task"),
    "keep": (int, "keep", "checkpoints to keep, 0 all; last and best always stay"),
    "n-action-steps": (int, "n_action_steps", "actions executed per chunk, written to the policy"),
    "lora-rank": (int, "lora.rank", "rank of the adapters, 0 off"),
    "lora-alpha": (int, "lora.alpha", "scale of the adapters"),
    "lora-dropout": (float, "lora.dropout", "dropout of the adapters"),
    "lora-targets": (str, "lora.targets", "regular expression over module names"),
    "augment": (int, "augment.most", "transforms per picture, 0 off"),
    "craft-anchors": (str, "craft.anchors", "anchor cache: turns CRaFT on"),
    "craft-every": (int, "craft.every", "steps between retention gradients"),
    "craft-conflict": (float, "craft.conflict_cosine", "project below this cosine"),
    "craft-lambda": (float, "craft.lambda_start", "first multiplier"),
    "craft-batch": (int, "craft.anchor_batch", "anchors per retention gradient"),
}
CHOSEN = {
    "precision": ("precision", CHOICES["precision"]),
    "device": ("device", CHOICES["device"]),
    "statistics": ("statistics", CHOICES["statistics"]),
    "delta-target": ("delta_target", CHOICES["delta_target"]),
    "craft-merge": ("craft.merge", MERGES),
    "craft-loss": ("craft.loss", LOSSES),
}
SWITCHES = {
    "padded-dims": ("padded_dims", "count padded action dimensions in the loss"),
    "craft-raw": ("craft.raw", "do not divide the retention loss by the teacher's spread"),
    "freeze-vision": ("freeze.vision", "freeze the vision tower"),
    "expert-only": ("freeze.expert_only", "freeze the whole VLM"),
    "train-state-proj": ("freeze.state_proj", "train the state's projection"),
}


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags shared by every way to start a run."""
    add_data_arguments(parser)
    parser.add_argument("--out", required=True, help="new folder of the run")
    parser.add_argument(
        "--held-out", type=float, default=0.0, metavar="SHARE", help="share of episodes held out for validation"
    )
    for flag, (kind, _, text) in FIELDS.items():
        parser.add_argument(f"--{flag}", type=kind, help=text)
    for flag, (_, known) in CHOSEN.items():
        parser.add_argument(f"--{flag}", choices=known)
    for flag, (_, text) in SWITCHES.items():
        parser.add_argument(f"--{flag}", action=argparse.BooleanOptionalAction, default=None, help=text)
    parser.add_argument("--track", action="append", default=[], choices=("tensorboard", "wandb"), help="also log there")


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dataset",
        action="append",
        required=True,
        metavar="PATH[:WEIGHT]",
        help="LeRobot data set; several are mixed by weight",
    )
    parser.add_argument(
        "--episodes",
        type=parse_episodes,
        default=(),
        metavar="LIST",
        help="episodes to use, e.g. 0-9,12 (one data set only)",
    )
    parser.add_argument(
        "--camera", action="append", default=[], metavar="POLICY=DATA", help="a policy camera and the data's key for it"
    )


def config_from_arguments(
    arguments: argparse.Namespace, policy: str, defaults: Mapping[str, Any], kind: str = "base", episodes: int = 0
) -> TrainConfig:
    """The configuration of parsed flags on top of `defaults`. `episodes`: only the first so many of every data set, 0
    all."""
    rename = dict(pair(text, "--camera") for text in arguments.camera)
    config = TrainConfig(
        policy,
        arguments.out,
        tasks_of(arguments.dataset, arguments.episodes),
        kind,
        rename=rename,
        trackers=tuple(arguments.track),
        **defaults,
    )
    named = vars(arguments)
    table = {flag: field for flag, (_, field, _) in FIELDS.items()}
    table |= {flag: field for flag, (field, _) in {**CHOSEN, **SWITCHES}.items()}
    config = with_values(config, {field: named[flag.replace("-", "_")] for flag, field in table.items()})
    if config.validate_every and not arguments.held_out:
        raise ConfigError("--validate-every needs episodes to validate on; give --held-out, for example 0.1")
    join(config.device)
    return with_held_out(first_episodes(config, episodes) if episodes else config, arguments.held_out)


def tasks_of(datasets: Sequence[str], episodes: tuple[int, ...]) -> tuple[TaskData, ...]:
    """The data sets of `PATH[:WEIGHT]` texts; names are folder names, made unique."""
    tasks: list[TaskData] = []
    for text in datasets:
        path, _, weight = (
            text.rpartition(":") if _is_number(text.rpartition(":")[2]) and ":" in text else (text, "", "1")
        )
        name = Path(path).name or path
        taken = sum(task.name == name or task.name.startswith(f"{name}#") for task in tasks)
        tasks.append(TaskData(f"{name}#{taken + 1}" if taken else name, str(Path(path).resolve()), float(weight)))
    if episodes and len(tasks) > 1:
        raise ConfigError("--episodes with several data sets is ambiguous; give one data set")
    return tuple(replace(task, episodes=episodes) for task in tasks)


def parse_episodes(text: str) -> tuple[int, ...]:
    """`0-3,7` → (0, 1, 2, 3, 7). ConfigError for anything else, and for an empty list."""
    chosen: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ConfigError(f"episode list {text!r} is not understood; write numbers and ranges such as 0-9,12")
        chosen += range(int(first), int(last or first) + 1)
    if not chosen:
        raise ConfigError(f"episode list {text!r} is empty; give at least one episode")
    return tuple(dict.fromkeys(chosen))


def pair(text: str, flag: str) -> tuple[str, str]:
    """`A=B` → (A, B)."""
    left, sign, right = text.partition("=")
    if not (left and sign and right):
        raise ConfigError(f"{flag} {text!r}: write NAME=VALUE")
    return left, right


def reporter(first_step: int, steps: int, title: str) -> Any:
    """The live line of the first process, silence elsewhere; a context manager. After `join`."""
    return live_line(first_step, steps, title) if is_first() else _Silence()


class _Silence:
    def __enter__(self) -> Report:
        return silent

    def __exit__(self, *_: object) -> None:
        return None


def print_notes(notes: Sequence[str]) -> None:
    """What a person should know before the run starts."""
    for note in notes if is_first() else ():
        print(f"note: {note}", flush=True)


def print_outcome(outcome: Outcome) -> None:
    """The end of the run, for people and for `--json`."""
    if not is_first():
        return
    best = (
        f", best validation {outcome.best_loss:.5f} at step {outcome.best_step}"
        if outcome.best_loss is not None
        else ""
    )
    print(f"done: {outcome.steps} steps, loss {outcome.loss:.5f}{best}; checkpoint {outcome.checkpoint}")
    answer(
        {
            "steps": outcome.steps,
            "loss": outcome.loss,
            "best_loss": outcome.best_loss,
            "best_step": outcome.best_step,
            "checkpoint": outcome.checkpoint,
        }
    )


def _is_number(text: str) -> bool:
    try:
        return isfinite(float(text))
    except ValueError:
        return False
