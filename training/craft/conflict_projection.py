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
from math import sqrt

import torch
from torch import Tensor

from vla_edge.errors import ConfigError
from vla_edge.training.run_config import CraftConfig

Gradients = Sequence[Tensor | None]


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
    unit = [torch.nn.functional.normalize(value.flatten(1), dim=1, eps=1e-12) for value in (now, then)]
    return 0.5 * (unit[0] - unit[1]).square().sum(1).mean()


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
