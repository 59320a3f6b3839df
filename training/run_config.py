# SPDX-License-Identifier: Apache-2.0
"""Everything that decides a training run, as frozen dataclasses; one flag or one YAML key each.

The configuration is written into the run and into every checkpoint, and a
resumed run reads it from there: what was not saved cannot differ.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from math import inf
from pathlib import Path
from typing import Any

from vla_edge.errors import ConfigError, TrainingError
from vla_edge.fields import build, merged, parse_yaml, read_object, to_json
from vla_edge.lerobot_data.tolerance import TOLERANCE_S

CHOICES = {
    "precision": ("float32", "bf16", "fp16"),
    "kind": ("base", "delta", "distill"),
    "delta_target": ("noise", "stale"),
    "statistics": ("union", "first", "checkpoint"),
    "cache_type": ("float32", "bfloat16", "int8"),
    "device": ("auto", "cpu", "cuda"),
}
MERGES = ("weighted", "equal", "task_priority")
LOSSES = ("mse", "cosine", "l1")
LAYERS = (-2, -1)
"""Of the expert, counted from the end: what CRaFT's anchors hold unless told otherwise."""
GROUPS = {"hidden": ("state",), "velocity": ("velocity",), "vlm": ("vision", "language")}
"""Group → its features; of CRaFT's anchors; `hidden` has each layer's beside."""
TRANSFORMS = 6
"""Kinds of image augmentation (`augment.py`)."""


def within(name: str, value: float, low: float, high: float = inf) -> None:
    """ConfigError unless the finite `value` lies in [low, high]; NaN lies nowhere."""
    if not low <= value <= high or value == inf:
        limit = f"must be at least {low:g}" if high == inf else f"must be {low:g} to {high:.10g}"
        raise ConfigError(f"{name} is {value}: {limit}")


def above_zero(name: str, value: float) -> None:
    if not 0 < value < inf:
        raise ConfigError(f"{name} {value}: must be above 0 and finite")


@dataclass(frozen=True, slots=True)
class OptimizerConfig:
    """AdamW; `grad_clip_norm` is the largest norm of the whole gradient."""

    lr: float = 5e-5
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 1e-10
    grad_clip_norm: float = 10.0

    def __post_init__(self) -> None:
        above_zero("learning rate", self.lr)
        above_zero("optimizer.eps", self.eps)
        above_zero("grad_clip_norm", self.grad_clip_norm)
        within("weight_decay", self.weight_decay, 0, 1e3)
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"optimizer.betas {list(self.betas)}: give two numbers from 0 to below 1")


@dataclass(frozen=True, slots=True)
class ScheduleConfig:
    """Linear warm-up, then cosine to `decay_lr` at `decay_steps`."""

    warmup_steps: int = 1000
    decay_steps: int = 30_000
    decay_lr: float = 2.5e-6

    def __post_init__(self) -> None:
        within("warmup_steps", self.warmup_steps, 0)
        within("decay_steps", self.decay_steps, 1)
        within("decay_lr", self.decay_lr, 0)


@dataclass(frozen=True, slots=True)
class TaskData:
    """One dataset of the mix. `name` appears in reports; `held_out` episodes are never trained on; `tolerance_s`: how
    far a picture's time may be from its frame's."""

    name: str
    path: str
    weight: float = 1.0
    episodes: tuple[int, ...] = ()
    held_out: tuple[int, ...] = ()
    tolerance_s: float = TOLERANCE_S


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """Low-rank adapters; rank 0 is off. `targets`: a regular expression over module names."""

    rank: int = 0
    alpha: int = 16
    dropout: float = 0.0
    targets: str = r".*\.(vlm\.model\.text_model|lm_expert)\..*\.(q|k|v|o)_proj"

    def __post_init__(self) -> None:
        within("lora.rank", self.rank, 0)
        within("lora.alpha", self.alpha, 1)
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"lora.dropout is {self.dropout}: give 0 to below 1")
        try:
            re.compile(self.targets)
        except re.error as error:
            raise ConfigError(f"lora.targets {self.targets!r} is no regular expression ({error})") from None


@dataclass(frozen=True, slots=True)
class AugmentConfig:
    """Image augmentation, off by default: up to `most` of the transforms per image, in a seeded order."""

    most: int = 0
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.5
    hue: float = 0.05
    sharpness: float = 0.5
    shift: float = 0.05

    def __post_init__(self) -> None:
        within("augment.most", self.most, 0, TRANSFORMS)
        for item in fields(self):
            if item.name != "most":
                within(f"augment.{item.name}", getattr(self, item.name), 0, 1)


@dataclass(frozen=True, slots=True)
class FreezeConfig:
    """Which parts of the base policy train; None keeps what the checkpoint's own config says."""

    vision: bool | None = None
    expert_only: bool | None = None
    state_proj: bool | None = None


@dataclass(frozen=True, slots=True)
class CraftConfig:
    """`every`: optimiser steps between retention gradients (K). `conflict_cosine`: below this cosine of task and
    retention gradient the task gradient is projected. ε falls linearly from `epsilon_start` to `epsilon_end`.
    `raw` keeps the retention loss undivided by the teacher's variance."""

    anchors: str = ""
    every: int = 5
    conflict_cosine: float = -0.1
    merge: str = "weighted"
    lambda_start: float = 1.0
    lambda_lr: float = 0.01
    lambda_max: float = 10.0
    epsilon_start: float = 1.0
    epsilon_end: float = 0.1
    anchor_batch: int = 16
    loss: str = "mse"
    raw: bool = False

    def __post_init__(self) -> None:
        for name, known in (("merge", MERGES), ("loss", LOSSES)):
            if getattr(self, name) not in known:
                raise ConfigError(f"craft.{name} {getattr(self, name)!r}: known are {', '.join(known)}")
        for name in ("every", "anchor_batch"):
            within(f"craft.{name}", getattr(self, name), 1)
        for name in ("lambda_lr", "lambda_max", "epsilon_start", "epsilon_end"):
            within(f"craft.{name}", getattr(self, name), 0)
        within("craft.lambda_start", self.lambda_start, 0, self.lambda_max)
        within("craft.conflict_cosine", self.conflict_cosine, -1, 1)


@dataclass(frozen=True, slots=True)
class DeltaConfig:
    """Delta training's own numbers, named as in config.json; None keeps the checkpoint's. `use_cls_head` False trains
    the delta expert alone."""

    use_cls_head: bool = True
    num_cls_prefix: int | None = None
    num_cls_suffix: int | None = None
    vicreg_weight: float | None = None
    vicreg_lambda: float | None = None
    vicreg_mu: float | None = None
    vicreg_nu: float | None = None
    cls_noise_scale: float | None = None
    cls_similarity_threshold: float | None = None
    cls_action_context: int | None = None


@dataclass(frozen=True, slots=True)
class WandbConfig:
    """Where Weights & Biases keeps the run; "": your own entity, the run folder's name."""

    project: str = "vla-edge"
    entity: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """One run. `policy`: checkpoint folder. `rename`: policy camera key → dataset camera key.

    `kind` "base" trains the policy, "delta" the delta expert and CLS head on a
    frozen policy, "distill" an expert that needs `num_steps` flow steps only.
    `batch_size` is per process and accumulation step.
    `padded_dims` counts the padded action dimensions in the loss, as the
    published base model did. `n_action_steps` and `num_steps` (flow steps) 0
    and `image_size` (width, height; SmolVLA takes squares) None keep the checkpoint's. `cache_vision`:
    folder of picture tokens (`frozen/vision_cache.py`), "" to run the tower each step; `cache_prefix`: of keys and
    values of pictures and instruction (`frozen/prefix_cache.py`), "" to run the vision-language model each step.
    `workers` None: as many as pay (`batches.usual_workers`); a run's own configuration holds the number.
    """

    policy: str
    output: str
    data: tuple[TaskData, ...]
    kind: str = "base"
    delta_target: str = "stale"
    steps: int = 50_000
    batch_size: int = 8
    accumulation: int = 1
    precision: str = "float32"
    device: str = "auto"
    seed: int = 1000
    workers: int | None = 0
    cache_mb: int = 512
    cache_vision: str = ""
    cache_prefix: str = ""
    cache_type: str = "float32"
    save_every: int = 1000
    log_every: int = 10
    validate_every: int = 0
    validation_frames: int = 256
    keep: int = 0
    save: bool = True
    statistics: str = "union"
    padded_dims: bool = False
    n_action_steps: int = 0
    num_steps: int = 0
    image_size: tuple[int, int] | None = None
    rename: Mapping[str, str] = field(default_factory=dict)
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    freeze: FreezeConfig = FreezeConfig()
    lora: LoraConfig = LoraConfig()
    augment: AugmentConfig = AugmentConfig()
    craft: CraftConfig = CraftConfig()
    delta: DeltaConfig = DeltaConfig()
    trackers: tuple[str, ...] = ()
    wandb: WandbConfig = WandbConfig()

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulation", "save_every", "log_every", "validation_frames"):
            within(name, getattr(self, name), 1)
        within("workers", self.workers or 0, 0)
        for name in ("cache_mb", "validate_every", "keep", "n_action_steps", "num_steps"):
            within(name, getattr(self, name), 0)
        within("seed", self.seed, 0, 2**31 - 1)
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} {getattr(self, name)!r}: known are {', '.join(known)}")
        for tracker in self.trackers:
            if tracker not in ("tensorboard", "wandb"):
                raise ConfigError(f"tracker {tracker!r}: known are tensorboard, wandb")
        if self.schedule.decay_lr > self.optimizer.lr:
            raise ConfigError(
                f"decay_lr {self.schedule.decay_lr:g} is above the learning rate {self.optimizer.lr:g}, which would "
                "rise; lower --decay-lr"
            )


def read_config(file: Path) -> TrainConfig:
    """The configuration a run or checkpoint was saved with."""
    content = read_object(file, TrainingError, "the run cannot be resumed", "missing; this is not a run of vla-train")
    return build(TrainConfig, content, file.name, ConfigError)


BY_FLAG = {"policy": "--checkpoint", "output": "--out", "data": "--dataset", "rename": "--camera"}


def with_changes(config: TrainConfig, changes: Mapping[str, Any], where: object) -> TrainConfig:
    """`config` with what `changes` holds of it, nested as the dataclasses are. ConfigError names `where` and the field
    that is unknown, of another type or out of range, or that a flag gives."""
    for name, flag in BY_FLAG.items():
        if name in changes:
            raise ConfigError(f"{where}: {name} is given by {flag}; leave it out")
    return build(TrainConfig, merged(to_json(config), changes), where, ConfigError)


def read_changes(texts: Sequence[str]) -> list[tuple[tuple[str, ...], Any]]:
    """`--set` texts `optimizer.eps=1e-7` as (path, value); values are YAML. ConfigError for one without a name."""
    found = []
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise ConfigError(f"--set {text!r}: write NAME=VALUE, for example --set optimizer.eps=1e-7")
        found.append((tuple(name.split(".")), parse_yaml(value, f"--set {name}", ConfigError, "give a YAML value")))
    return found


def with_settings(config: TrainConfig, texts: Sequence[str]) -> TrainConfig:
    """`config` with the `--set` texts applied, one after the other."""
    for path, value in read_changes(texts):
        for name in reversed(path):
            value = {name: value}
        config = with_changes(config, value, "--set")
    return config


def with_values(config: TrainConfig, values: Mapping[str, Any]) -> TrainConfig:
    """`config` with dotted fields replaced (`optimizer.lr`), all at once; values that are None are skipped."""
    outer: dict[str, Any] = {}
    inner: dict[str, dict[str, Any]] = {}
    for path, value in values.items():
        name, _, rest = path.partition(".")
        if value is not None:
            (inner.setdefault(name, {}) if rest else outer)[rest or name] = value
    return replace(
        config, **outer, **{name: replace(getattr(config, name), **changed) for name, changed in inner.items()}
    )
