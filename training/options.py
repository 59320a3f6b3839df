# SPDX-License-Identifier: Apache-2.0
"""The flags of a training run, each a field of `TrainConfig`, and what `fine-tune`, `scratch`, `smoke` and `resume`
print."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from math import isfinite
from pathlib import Path
from typing import Any

from vla_edge.camera_names import camera_pairs
from vla_edge.command_line import answer, between, count, folder_to_write, fraction, not_negative, positive, whole
from vla_edge.errors import ConfigError
from vla_edge.fields import read_object
from vla_edge.hub import local_folder
from vla_edge.lerobot_data.editing.episode_edits import parse_episodes
from vla_edge.lerobot_data.tolerance import TOLERANCE_S, add_tolerance
from vla_edge.training.craft.conflict_projection import LOSSES, MERGES
from vla_edge.training.loop import Outcome
from vla_edge.training.processes import is_first, join
from vla_edge.training.progress import Report, live_line, silent
from vla_edge.training.run_config import CHOICES, TaskData, TrainConfig, with_changes, with_settings, with_values
from vla_edge.training.runs import first_episodes, with_held_out


def folder(text: str) -> str:
    """Type of an argument: a folder that is there or can be made, as the text that a run keeps."""
    return str(folder_to_write(text))


FLAGS: dict[str, dict[str, tuple[Any, str, str]]] = {
    "length of the run": {
        "steps": (count, "steps", "optimiser steps"),
        "batch-size": (count, "batch_size", "samples per process and accumulation step"),
        "accumulation": (count, "accumulation", "batches per optimiser step"),
        "precision": (CHOICES["precision"], "precision", "number format of the forward and backward pass"),
        "device": (CHOICES["device"], "device", "where to train; auto: a GPU where there is one"),
        "seed": (whole, "seed", "seed of everything random"),
        "workers": (whole, "workers", "processes that load data, 0: none; not given: up to 4 where it pays"),
        "cache-vision": (folder, "cache_vision", "folder that keeps each picture's tokens: a frozen tower runs once"),
        "cache-prefix": (folder, "cache_prefix", "folder that keeps each frame's keys and values: for small sets"),
        "cache-type": (CHOICES["cache_type"], "cache_type", "how they are kept; float32 is exact"),
        "cache-mb": (whole, "cache_mb", "memory of a process for decoded pictures, shared by its loaders and datasets"),
    },
    "learning rate": {
        "lr": (positive, "optimizer.lr", "peak learning rate"),
        "weight-decay": (not_negative, "optimizer.weight_decay", "AdamW weight decay"),
        "grad-clip": (positive, "optimizer.grad_clip_norm", "largest gradient norm"),
        "warmup": (whole, "schedule.warmup_steps", "steps in which the rate rises to its peak"),
        "decay": (count, "schedule.decay_steps", "steps until the rate is at its lowest"),
        "decay-lr": (not_negative, "schedule.decay_lr", "lowest learning rate"),
    },
    "what is trained": {
        "freeze-vision": (bool, "freeze.vision", "leave the vision tower as it is"),
        "expert-only": (bool, "freeze.expert_only", "leave the whole vision-language model as it is"),
        "train-state-proj": (bool, "freeze.state_proj", "train the projection of the joint state"),
        "delta-target": (CHOICES["delta_target"], "delta_target", "with --kind delta: what the delta expert corrects"),
        "n-action-steps": (whole, "n_action_steps", "actions executed per chunk; 0: as the checkpoint says"),
        "padded-dims": (bool, "padded_dims", "count padded action dimensions in the loss"),
        "statistics": (CHOICES["statistics"], "statistics", "normalise by all datasets, the first, or the checkpoint"),
        "augment": (whole, "augment.most", "random changes per picture; 0: none"),
    },
    "LoRA": {
        "lora-rank": (whole, "lora.rank", "rank of the adapters; 0: none"),
        "lora-alpha": (count, "lora.alpha", "scale of the adapters"),
        "lora-dropout": (fraction, "lora.dropout", "dropout of the adapters"),
        "lora-targets": (str, "lora.targets", "regular expression over module names"),
    },
    "CRaFT: keep what the starting policy can do": {
        "craft-anchors": (str, "craft.anchors", "folder that `vla-train anchors` wrote; turns CRaFT on"),
        "craft-every": (count, "craft.every", "steps between retention gradients"),
        "craft-conflict": (between(-1, 1), "craft.conflict_cosine", "project gradients below this cosine"),
        "craft-lambda": (not_negative, "craft.lambda_start", "first weight of the retention gradient"),
        "craft-batch": (count, "craft.anchor_batch", "anchors per retention gradient"),
        "craft-merge": (MERGES, "craft.merge", "how the two gradients are added"),
        "craft-loss": (LOSSES, "craft.loss", "distance to the teacher's features"),
        "craft-raw": (bool, "craft.raw", "do not divide the retention loss by the teacher's spread"),
    },
    "checkpoints and validation": {
        "save-every": (count, "save_every", "steps between checkpoints"),
        "save": (bool, "save", "write checkpoints; --no-save for a dry run"),
        "keep": (whole, "keep", "checkpoints to keep, 0: all; last and best always stay"),
        "log-every": (count, "log_every", "steps between metrics"),
        "validate-every": (whole, "validate_every", "steps between validations; 0: never"),
        "validation-frames": (count, "validation_frames", "held-out frames per validation and task"),
    },
}
"""Group → flag → how it is read, the field of `TrainConfig` it sets, what it is."""


DELTA_HELD_OUT = 0.1
"""Share of episodes that a delta expert's error is measured on where no other is given."""
TRACKERS = ("tensorboard", "wandb")


def add_training_arguments(parser: argparse.ArgumentParser, defaults: Mapping[str, Any]) -> None:
    """Flags shared by every way to start a run; what is not given comes from `defaults`, then from `TrainConfig`."""
    add_data_arguments(parser)
    parser.add_argument(
        "--out", type=folder, metavar="RUN", help="new folder of the run (default: outputs/train/DATE/TIME, as LeRobot)"
    )
    usual = replace(TrainConfig("", "", (TaskData("", ""),)), **defaults)
    for title, flags in FLAGS.items():
        group = parser.add_argument_group(title)
        for flag, (kind, path, text) in flags.items():
            value = reduce(getattr, path.split("."), usual)
            usually = {"True": "yes", "False": "no"}.get(str(value), str(value)).replace("%", "%%")
            shown = text if value in ("", None) else f"{text} (default: {usually})"
            if kind is bool:
                group.add_argument(f"--{flag}", action=argparse.BooleanOptionalAction, default=None, help=shown)
            elif isinstance(kind, tuple):
                group.add_argument(f"--{flag}", choices=kind, help=shown)
            else:
                metavar = {"lora-targets": "REGEX"}.get(flag, "DIR") if kind in (str, folder) else None
                group.add_argument(f"--{flag}", type=kind, metavar=metavar, help=shown)
    group.add_argument(
        "--config", dest="run_file", type=Path, metavar="FILE", help="YAML or JSON of the run's fields; flags win"
    )
    add_set(group)
    group.add_argument(
        "--held-out",
        type=fraction,
        help="share of episodes held out for validation (default: none; with --kind delta 0.1, which measure it)",
    )
    group.add_argument("--track", action="append", default=[], choices=TRACKERS, help="write metrics there too")


def add_set(group: Any) -> None:
    group.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any field of the run as run.json names it, e.g. optimizer.betas=[0.9,0.99] or delta.vicreg_mu=10",
    )


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dataset",
        action="append",
        required=True,
        metavar="DIR[:WEIGHT]",
        help="LeRobot dataset, its folder or a Hub id; give several to mix them by weight",
    )
    add_tolerance(parser)
    parser.add_argument(
        "--episodes",
        type=parse_episodes,
        default=(),
        metavar="LIST",
        help="episodes to use, e.g. 0-9,12 (one dataset only)",
    )
    parser.add_argument(
        "--camera",
        action="append",
        default=[],
        metavar="NAME=DATASET_NAME",
        help="a camera of the policy whose name differs in the dataset, e.g. laptop=front",
    )


def config_from_arguments(
    arguments: argparse.Namespace, policy: str, defaults: Mapping[str, Any], kind: str = "base", episodes: int = 0
) -> TrainConfig:
    """The configuration of parsed flags on top of `defaults`. `episodes`: only the first so many of every dataset, 0
    all."""
    rename = camera_pairs(arguments.camera)
    out = arguments.out or time.strftime("outputs/train/%Y-%m-%d/%H-%M-%S")
    config = TrainConfig(
        policy,
        out,
        tasks_of(arguments.dataset, arguments.episodes, arguments.tolerance),
        kind,
        rename=rename,
        trackers=tuple(arguments.track),
        **defaults,
    )
    if arguments.run_file is not None:
        content = read_object(arguments.run_file, ConfigError, "write the run's fields as run.json has them")
        config = with_changes(config, content, arguments.run_file)
    named = vars(arguments)
    table = {flag: path for flags in FLAGS.values() for flag, (_, path, _) in flags.items()}
    config = with_values(config, {field: named[flag.replace("-", "_")] for flag, field in table.items()})
    config = with_settings(config, arguments.set)
    if config.kind != kind:
        raise ConfigError(
            f"kind {config.kind} is given by `vla-train fine-tune --kind base|delta` and `vla-train distill`; leave it "
            "out of --set and --config"
        )
    held_out = arguments.held_out if arguments.held_out is not None else DELTA_HELD_OUT * (kind == "delta")
    if config.validate_every and not held_out:
        raise ConfigError("--validate-every needs episodes to validate on; give --held-out, for example 0.1")
    join(config.device)
    return with_held_out(first_episodes(config, episodes) if episodes else config, held_out)


def tasks_of(
    datasets: Sequence[str], episodes: tuple[int, ...], tolerance_s: float = TOLERANCE_S
) -> tuple[TaskData, ...]:
    """The datasets of `PATH[:WEIGHT]` texts (folders or Hub ids); names are folder names, made unique."""
    tasks: list[TaskData] = []
    for text in datasets:
        path, _, weight = (
            text.rpartition(":") if _is_number(text.rpartition(":")[2]) and ":" in text else (text, "", "1")
        )
        name = Path(path).name or path
        taken = sum(task.name == name or task.name.startswith(f"{name}#") for task in tasks)
        folder = str(local_folder(path, "dataset").resolve())
        tasks.append(TaskData(f"{name}#{taken + 1}" if taken else name, folder, float(weight)))
    if episodes and len(tasks) > 1:
        raise ConfigError("--episodes with several datasets is ambiguous; give one dataset")
    return tuple(replace(task, episodes=episodes, tolerance_s=tolerance_s) for task in tasks)


def pair(text: str, flag: str) -> tuple[str, str]:
    """`A=B` → (A, B)."""
    left, sign, right = text.partition("=")
    if not (left and sign and right):
        raise ConfigError(f"{flag} {text!r}: write NAME=VALUE")
    return left, right


def reporter(first_step: int, steps: int, title: str, every: int = 10) -> Any:
    """The live line of the first process, silence elsewhere; a context manager. After `join`."""
    return live_line(first_step, steps, title, every) if is_first() else _Silence()


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
