# SPDX-License-Identifier: Apache-2.0
"""CRaFT's arithmetic: conflict projection, merge, the multiplier λ and the slack ε.

Fine-tuning as a constrained problem: keep the retention loss on anchors below
ε while the task loss falls; λ is the multiplier, found by gradient ascent.
Gradients are lists over the trained parameters in one fixed order; None (no
gradient reached that parameter) counts as zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, sqrt

import torch
from torch import Tensor

from vla_edge.errors import ConfigError

Gradients = Sequence[Tensor | None]
MERGES = ("weighted", "equal", "task_priority")
LOSSES = ("mse", "cosine", "l1")


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
        if self.merge not in MERGES:
            raise ConfigError(f"CRaFT merge {self.merge!r}: known are {', '.join(MERGES)}")
        if self.loss not in LOSSES:
            raise ConfigError(f"CRaFT loss {self.loss!r}: known are {', '.join(LOSSES)}")
        if self.every < 1 or self.anchor_batch < 1:
            raise ConfigError(f"CRaFT every {self.every} and anchor batch {self.anchor_batch}: both must be at least 1")
        if not -1 <= self.conflict_cosine <= 1:
            raise ConfigError(f"CRaFT conflict threshold {self.conflict_cosine} is a cosine: give -1 to 1")
        if not 0 <= self.lambda_start <= self.lambda_max < inf or not 0 <= self.lambda_lr < inf:
            raise ConfigError(
                f"CRaFT λ starts at {self.lambda_start}, steps by {self.lambda_lr} and ends at {self.lambda_max}: "
                "give 0 ≤ start ≤ end, and a step of 0 or more"
            )
        if not (0 <= self.epsilon_start < inf and 0 <= self.epsilon_end < inf):
            raise ConfigError(
                f"CRaFT ε goes from {self.epsilon_start} to {self.epsilon_end}: give numbers of 0 or more"
            )


@dataclass(frozen=True, slots=True)
class Merged:
    """`gradients` to step with; `cosine` of task and retention gradient before projection; `conflict`: projected."""

    gradients: list[Tensor | None]
    cosine: float
    conflict: bool


def combine(task: Gradients, retention: Gradients, multiplier: float, config: CraftConfig) -> Merged:
    """Project the task gradient off a conflicting retention gradient, then merge both with λ = `multiplier`."""
    dot, task_norm, retention_norm = _dot(task, retention), sqrt(_dot(task, task)), sqrt(_dot(retention, retention))
    cosine = dot / (task_norm * retention_norm) if task_norm and retention_norm else 0.0
    conflict = cosine < config.conflict_cosine
    along = -dot / retention_norm**2 if conflict else 0.0
    weights = {"weighted": (1.0, multiplier), "equal": (0.5, 0.5), "task_priority": (1.0, min(multiplier, 1.0))}[
        config.merge
    ]
    merged = [_sum(g, r, weights[0], weights[0] * along + weights[1]) for g, r in zip(task, retention, strict=True)]
    return Merged(merged, cosine, conflict)


def next_multiplier(multiplier: float, retention_loss: float, epsilon: float, config: CraftConfig) -> float:
    """λ ← clip(λ + η·(L_ret − ε), 0, λ_max)."""
    return min(max(multiplier + config.lambda_lr * (retention_loss - epsilon), 0.0), config.lambda_max)


def epsilon_at(step: int, total_steps: int, config: CraftConfig) -> float:
    """ε of optimiser step `step` (from 0): linear over the run, its last step exactly `epsilon_end`."""
    done = min(step / (total_steps - 1), 1.0) if total_steps > 1 else 1.0
    return config.epsilon_start + (config.epsilon_end - config.epsilon_start) * done


def retention_loss(student: Tensor, teacher: Tensor, kind: str) -> Tensor:
    """Distance of `student` from `teacher`, both [batch, ...], in float32; 0 for identical inputs.

    `cosine` is 1 − cos of each sample's flattened vector, computed as half the
    squared distance of the unit vectors: the same number, without rounding
    below zero.
    """
    if student.shape != teacher.shape:
        raise ConfigError(
            f"retention loss between shapes {tuple(student.shape)} and {tuple(teacher.shape)}; rebuild the anchors"
        )
    now, then = student.float(), teacher.float()
    if kind == "mse":
        return (now - then).square().mean()
    if kind == "l1":
        return (now - then).abs().mean()
    if kind == "cosine":
        unit = [torch.nn.functional.normalize(value.flatten(1), dim=1, eps=1e-12) for value in (now, then)]
        return 0.5 * (unit[0] - unit[1]).square().sum(1).mean()
    raise ConfigError(f"CRaFT loss {kind!r}: known are {', '.join(LOSSES)}")


def _dot(left: Gradients, right: Gradients) -> float:
    """Sum in float64, so that the cosine of large models is not a rounding error."""
    total = 0.0
    for a, b in zip(left, right, strict=True):
        if a is not None and b is not None:
            total += float(torch.sum(a.double() * b.double()))
    return total


def _sum(task: Tensor | None, retention: Tensor | None, of_task: float, of_retention: float) -> Tensor | None:
    if retention is None:
        return None if task is None else task * of_task
    if task is None:
        return retention * of_retention
    return task * of_task + retention * of_retention
