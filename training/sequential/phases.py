# SPDX-License-Identifier: Apache-2.0
"""Stage files: tasks learnt one after the other, each stage a mix of the tasks so far.

`kuavo.yaml` beside this file is the shipped example (docs/training-methods.md §3). A stage's
epoch is one pass over its own (newest) task's training frames, so its steps
follow from the data: ceil(epochs · frames / (batch · share of that task)).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from math import ceil, inf
from pathlib import Path
from typing import Any

import numpy as np

from vla_edge.errors import ConfigError
from vla_edge.fields import build, merged, read_object, to_json
from vla_edge.lerobot_data.tolerance import TOLERANCE_S
from vla_edge.training.run_config import (
    FreezeConfig,
    OptimizerConfig,
    ScheduleConfig,
    TaskData,
    above_zero,
    read_changes,
    within,
)

KUAVO = "kuavo"


_NAME = re.compile(r"[\w-][\w.-]*")


@dataclass(frozen=True, slots=True)
class StageTask:
    """One dataset of the sequence; its dimensions are checked against the data. tolerance_s: of its pictures' times."""

    name: str
    dataset: str
    action_dim: int
    state_dim: int
    tolerance_s: float = TOLERANCE_S

    def data(self, held_out: tuple[int, ...] = (), weight: float = 1.0) -> TaskData:
        return TaskData(self.name, self.dataset, weight, held_out=held_out, tolerance_s=self.tolerance_s)


@dataclass(frozen=True, slots=True)
class Stage:
    """`mix`: share of tasks 1..n in every batch, summing to 1; the last one is the stage's own task."""

    name: str
    mix: tuple[float, ...]
    lr: float
    epochs: float
    warmup_steps: int
    decay_steps: int

    def steps(self, frames: int, batch_size: int) -> int:
        """Optimiser steps for `epochs` passes over the own task's `frames` with `batch_size` frames a step."""
        return max(1, ceil(self.epochs * self.steps_per_epoch(frames, batch_size)))

    def steps_per_epoch(self, frames: int, batch_size: int) -> float:
        return frames / (batch_size * self.mix[-1])


@dataclass(frozen=True, slots=True)
class SharedSettings:
    """What all stages have in common."""

    batch_size: int = 64
    accumulation: int = 1
    validate_every_epochs: float = 2.0
    statistics: str = "union"
    held_out_fraction: float = 0.1
    freeze: FreezeConfig = FreezeConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    decay_lr: float = 1e-6


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """What the stage file demands of the policy; 0 leaves the checkpoint's value."""

    chunk_size: int = 0
    n_action_steps: int = 0
    num_steps: int = 0
    max_state_dim: int = 0
    max_action_dim: int = 0


@dataclass(frozen=True, slots=True)
class StagePlan:
    """A whole stage file."""

    name: str
    tasks: tuple[StageTask, ...]
    stages: tuple[Stage, ...]
    shared: SharedSettings = SharedSettings()
    policy: PolicySettings = PolicySettings()


def read_stages(file: Path | str) -> StagePlan:
    """Read a stage file; the name `kuavo` is the shipped one. Dataset paths become absolute, relative to the file.

    ConfigError names the stage and field that is wrong.
    """
    shipped = str(file) == KUAVO
    path = Path(str(files("vla_edge.training") / f"{KUAVO}.yaml")) if shipped else Path(file)
    advice = f"give a YAML file or the shipped name {KUAVO}"
    plan = build(StagePlan, read_object(path, ConfigError, advice), path.name, ConfigError)
    _check(plan, path.name)
    base = Path.cwd() if shipped else path.parent.resolve()
    return _with_tasks(plan, {task.name: str((base / task.dataset).resolve()) for task in plan.tasks})


def stage_number(plan: StagePlan, name: str) -> int:
    """The place of a stage, from 0; ConfigError for a name that the plan does not have."""
    names = [stage.name for stage in plan.stages]
    if name not in names:
        raise ConfigError(f"no stage {name!r} in the stage file; it has {', '.join(names)}")
    return names.index(name)


def with_plan_settings(plan: StagePlan, texts: Sequence[str]) -> tuple[StagePlan, tuple[str, ...]]:
    """`plan` with those `--set` texts applied that name a part of it (`shared.batch_size=8`, `policy.chunk_size=4`,
    `stages.STAGE.epochs=1`), and the others, which are fields of every stage's run."""
    content, left = to_json(plan), []
    for text, (path, value) in zip(texts, read_changes(texts)):
        if path[0] in ("shared", "policy") and len(path) > 1:
            for name in reversed(path):
                value = {name: value}
            content = merged(content, value)
        elif path[0] == "stages" and len(path) == 3:
            content["stages"][stage_number(plan, path[1])][path[2]] = value
        else:
            left.append(text)
    changed = build(StagePlan, content, "--set", ConfigError)
    _check(changed, "--set")
    return changed, tuple(left)


def with_datasets(plan: StagePlan, paths: Mapping[str, str]) -> StagePlan:
    """`plan` with the datasets of some tasks replaced; ConfigError for a task it does not have."""
    names = [task.name for task in plan.tasks]
    for name in paths:
        if name not in names:
            raise ConfigError(f"no task {name!r} in the stage file; it has {', '.join(names)}")
    return _with_tasks(plan, {task.name: paths.get(task.name, task.dataset) for task in plan.tasks})


def hold_out(episodes: int, fraction: float, seed: int) -> tuple[int, ...]:
    """Episodes never trained on: at least one when there are two or more, a seeded choice, sorted.

    Fixed before the first stage and kept for all of them.
    """
    if episodes < 2 or fraction <= 0:
        return ()
    count = min(max(1, round(episodes * fraction)), episodes - 1)
    return tuple(sorted(int(i) for i in np.random.default_rng((seed, 77)).permutation(episodes)[:count]))


def _with_tasks(plan: StagePlan, paths: Mapping[str, str]) -> StagePlan:
    return replace(plan, tasks=tuple(replace(task, dataset=paths[task.name]) for task in plan.tasks))


def _check(plan: StagePlan, where: str) -> None:
    if not plan.tasks or not plan.stages:
        raise ConfigError(f"{where}: needs at least one task and one stage")
    for kind, names in (
        ("tasks", [task.name for task in plan.tasks]),
        ("stages", [stage.name for stage in plan.stages]),
    ):
        for name in names:
            if not _NAME.fullmatch(name):
                raise ConfigError(
                    f"{where}: {kind} {name!r}: names become folders and columns; use letters, digits, - _ . and no "
                    "dot first"
                )
        if len(set(names)) != len(names):
            raise ConfigError(f"{where}: two {kind} have the same name; reports go by name")
    if plan.shared.optimizer.lr != OptimizerConfig().lr:
        raise ConfigError(f"{where}: shared.optimizer.lr has no effect: each stage has its own lr; leave it out")
    for name in ("batch_size", "accumulation"):
        within(f"{where}: shared.{name}", getattr(plan.shared, name), 1)
    above_zero(f"{where}: shared.validate_every_epochs", plan.shared.validate_every_epochs)
    if plan.shared.statistics not in ("union", "first"):
        raise ConfigError(f"{where}: statistics {plan.shared.statistics!r}: known are union, first")
    if not 0 <= plan.shared.held_out_fraction < 1:
        raise ConfigError(f"{where}: held_out_fraction {plan.shared.held_out_fraction}: give 0 to below 1")
    for number, stage in enumerate(plan.stages, 1):
        if not 1 <= len(stage.mix) <= len(plan.tasks):
            raise ConfigError(f"{where}: stage {stage.name} mixes {len(stage.mix)} tasks, there are {len(plan.tasks)}")
        if any(share < 0 for share in stage.mix) or not stage.mix[-1] > 0 or abs(sum(stage.mix) - 1) > 1e-6:
            raise ConfigError(
                f"{where}: stage {stage.name} has mix {list(stage.mix)}: shares sum to 1, the last one above 0"
            )
        if not (0 < stage.epochs < inf and plan.shared.decay_lr <= stage.lr < inf and stage.lr > 0):
            raise ConfigError(
                f"{where}: stage {number} ({stage.name}) needs epochs above 0 and an lr above 0, not below decay_lr "
                f"{plan.shared.decay_lr:g}"
            )
        try:
            ScheduleConfig(stage.warmup_steps, stage.decay_steps, plan.shared.decay_lr)
        except ConfigError as error:
            raise ConfigError(f"{where}: stage {number} ({stage.name}): {error}") from None


def missing_datasets(plan: StagePlan) -> list[str]:
    """Tasks whose dataset folder does not exist."""
    return [f"{task.name} ({task.dataset})" for task in plan.tasks if not Path(task.dataset).is_dir()]


def describe(plan: StagePlan) -> str:
    """The plan as a table, for `--dry-run`."""
    lines = [f"{plan.name}: batch {plan.shared.batch_size}, statistics {plan.shared.statistics}"]
    for number, stage in enumerate(plan.stages, 1):
        mix = " ".join(f"{share:g}" for share in stage.mix)
        lines.append(
            f"  {number} {stage.name:<16} mix {mix:<14} lr {stage.lr:g} epochs {stage.epochs:g} warm-up "
            f"{stage.warmup_steps} decay {stage.decay_steps}"
        )
    return "\n".join(lines)


def settings_json(plan: StagePlan) -> dict[str, Any]:
    """What a sequence is resumed under: everything but where the data lie."""
    content = to_json(plan)
    for task in content["tasks"]:
        del task["dataset"]
    return content
