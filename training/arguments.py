# SPDX-License-Identifier: Apache-2.0
"""What can be typed after `vla-train fine-tune | distill | scratch | smoke | resume | stages | anchors | plan`: flags,
their fields and defaults. Nothing here loads torch, so that help and a typing error come at once."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

from vla_edge.camera_names import add_camera_pairs
from vla_edge.command_line import (
    CommandParser,
    between,
    count,
    folder_to_write,
    fraction,
    not_negative,
    positive,
    threads,
    whole,
)
from vla_edge.lerobot_data.editing.episode_edits import add_episodes
from vla_edge.lerobot_data.tolerance import add_tolerance
from vla_edge.policies.families import families, scratch_of
from vla_edge.training.lerobot_arguments import table
from vla_edge.training.run_config import (
    CHOICES,
    GROUPS,
    LAYERS,
    LOSSES,
    MERGES,
    OptimizerConfig,
    ScheduleConfig,
    TaskData,
    TrainConfig,
)
from vla_edge.training.sequential.phases import KUAVO

LONG = {"save_every": 1000, "workers": None}
FINE_TUNE = {"batch_size": 8, "steps": 50_000, "optimizer": OptimizerConfig(lr=5e-5), **LONG}
SMOKE = {"batch_size": 4, "steps": 20, "optimizer": OptimizerConfig(lr=1e-4), "save_every": 1000, "log_every": 1}
DISTILL = {"batch_size": 32, "steps": 5000, "optimizer": OptimizerConfig(lr=1e-4), **LONG}
STAGES: dict[str, Any] = {**LONG, "keep": 2}
"""Defaults of the ways to train (docs/training-methods.md §6)."""
TRACKERS = ("tensorboard", "wandb")
USUAL_FAMILY = "smolvla"
"""Of `scratch` without --family, and whose numbers its help shows."""


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
STAGE_FLAGS = ("precision", "device", "seed", "workers", "save-every", "keep")
"""Those that `stages` takes; the rest stands in its file."""
USUAL = TrainConfig("", "", (TaskData("", ""),))


def add_training_arguments(parser: argparse.ArgumentParser, defaults: Mapping[str, Any]) -> None:
    """Flags shared by every way to start a run; what is not given comes from `defaults`, then from `TrainConfig`."""
    add_data_arguments(parser)
    parser.add_argument(
        "--out", type=folder, metavar="RUN", help="new folder of the run (default: outputs/train/DATE/TIME, as LeRobot)"
    )
    usual = replace(USUAL, **defaults)
    for title, flags in FLAGS.items():
        group = parser.add_argument_group(title)
        for flag in flags:
            add_field(group, flag, usual)
    group.add_argument(
        "--config", dest="run_file", type=Path, metavar="FILE", help="YAML or JSON of the run's fields; flags win"
    )
    add_set(group)
    group.add_argument(
        "--held-out",
        type=fraction,
        help="share of episodes held out for validation (default: none; with --kind delta 0.1, which measure it)",
    )


def add_field(group: Any, flag: str, usual: TrainConfig) -> None:
    """One flag of `FLAGS`; its help names the value that the field has in `usual`."""
    kind, path, text = next(flags[flag] for flags in FLAGS.values() if flag in flags)
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


def add_set(group: Any) -> None:
    """`--set` and `--track` of every way to train."""
    group.add_argument("--track", action="append", default=[], choices=TRACKERS, help="write metrics there too")
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
    add_episodes(parser, "episodes to use, e.g. 0-9,12 (one dataset only)")
    add_camera_pairs(parser)


def add_fine_tune(parser: CommandParser, defaults: Mapping[str, Any] = FINE_TUNE) -> None:
    parser.add_argument(
        "--checkpoint", required=True, metavar="DIR", help="LeRobot checkpoint to start from: its folder, or a Hub id"
    )
    parser.add_argument("--revision", metavar="TEXT", help="branch, tag or commit of a Hub id (default: main)")
    parser.add_argument(
        "--kind", choices=("base", "delta"), default="base", help="delta: CLS head and delta expert on a frozen policy"
    )
    add_training_arguments(parser, defaults)
    parser.notes = table()


def add_distill(parser: CommandParser) -> None:
    parser.add_argument(
        "--checkpoint", required=True, metavar="DIR", help="trained SmolVLA whose chunks shall take fewer flow steps"
    )
    parser.add_argument("--revision", metavar="TEXT", help="branch, tag or commit of a Hub id (default: main)")
    parser.add_argument("--flow-steps", type=int, choices=(1, 2, 4), required=True, help="flow steps of the new policy")
    add_training_arguments(parser, DISTILL)
    parser.notes = table()


def add_scratch(parser: argparse.ArgumentParser) -> None:
    known = {name: scratch_of(name) for name in families()}
    parser.add_argument("--family", choices=tuple(known), default=USUAL_FAMILY, help="which policy")
    parser.add_argument(
        "--backbone",
        default="",
        metavar="PATH",
        help="pretrained weights: " + "; ".join(f"{name}: {scratch.backbone}" for name, scratch in known.items()),
    )
    parser.add_argument(
        "--policy-config",
        type=Path,
        metavar="FILE",
        help="JSON of policy configuration fields that differ from the family's defaults",
    )
    add_training_arguments(parser, scratch_defaults(USUAL_FAMILY))


def scratch_defaults(family: str) -> dict[str, Any]:
    """How a new policy of the family is trained, as fields of the run."""
    preset = scratch_of(family).preset
    optimizer = OptimizerConfig(lr=preset.lr, betas=preset.betas, weight_decay=preset.weight_decay)
    schedule = ScheduleConfig(preset.warmup_steps, preset.decay_steps, preset.decay_lr)
    run = {"batch_size": preset.batch_size, "steps": preset.steps, "optimizer": optimizer, "schedule": schedule}
    return {**LONG, **run}


def add_smoke(parser: CommandParser) -> None:
    add_fine_tune(parser, SMOKE)


def add_resume(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Continue an interrupted run exactly, with every option it was started with; what shall be another is a new "
        "run from its checkpoints/last/pretrained_model."
    )
    parser.add_argument("run", type=Path, help="folder of the run, or its checkpoints/last")
    parser.add_argument(
        "--dataset",
        action="append",
        default=[],
        type=Path,
        metavar="PATH",
        help="where the run's data lie now, in order",
    )


def add_stages(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", help=f"stage file (YAML), or {KUAVO!r} for the shipped four Kuavo stages")
    parser.add_argument("--checkpoint", metavar="DIR", help="LeRobot checkpoint to start from")
    parser.add_argument(
        "--out", type=folder, metavar="DIR", help="folder of the sequence; an existing one is continued"
    )
    parser.add_argument(
        "--dataset", action="append", default=[], metavar="TASK=PATH", help="the dataset folder of a task"
    )
    add_camera_pairs(parser)
    parser.add_argument(
        "--anchors", type=whole, default=0, help="CRaFT from stage 2 on with this many anchors of the earlier tasks"
    )
    parser.add_argument(
        "--anchor-layers",
        type=int,
        nargs="+",
        default=list(LAYERS),
        metavar="LAYER",
        help="expert layers the anchors hold, counted from the end",
    )
    for flag in STAGE_FLAGS:
        add_field(parser, flag, replace(USUAL, **STAGES))
    parser.add_argument(
        "--stage", default="", metavar="NAME", help="train this stage alone, from the one before if done"
    )
    parser.add_argument("--held-out", type=fraction, help="share of episodes held out (default: as the file says)")
    add_set(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the plan and what is missing, train nothing")


def add_anchors(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint", required=True, type=Path, help="the teacher: the checkpoint fine-tuning will start from"
    )
    parser.add_argument(
        "--dataset", action="append", required=True, metavar="PATH", help="data of what must not be forgotten"
    )
    add_episodes(parser, "episodes to use (one dataset only)")
    add_tolerance(parser)
    parser.add_argument("--out", required=True, type=folder_to_write, metavar="DIR", help="new folder of the cache")
    parser.add_argument("--count", type=count, default=256, help="number of anchors")
    parser.add_argument(
        "--features",
        nargs="+",
        default=["hidden", "velocity"],
        choices=sorted(GROUPS),
        help="what is kept; vlm with LoRA or a trained VLM",
    )
    parser.add_argument(
        "--layers",
        type=int,
        nargs="+",
        default=list(LAYERS),
        metavar="LAYER",
        help="expert layers of the group hidden, counted from the end",
    )
    parser.add_argument("--seed", type=whole, default=0, help="seed of which frames are taken")
    parser.add_argument("--device", choices=CHOICES["device"], default="auto", help="auto: a GPU where there is one")


def add_plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", required=True, type=Path, metavar="DIR", help="policy that will be trained")
    parser.add_argument("--batch", type=count, nargs="+", default=[1, 8, 32], help="batch sizes of the table")
    parser.add_argument(
        "--measure", action="store_true", help="also run four steps of each on this CPU (minutes at full size)"
    )
    parser.add_argument("--threads", type=threads, default=0, help="CPU threads of --measure, 0: all physical cores")
