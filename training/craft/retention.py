# SPDX-License-Identifier: Apache-2.0
"""CRaFT inside the loop: the retention gradient on anchors every K steps, λ and ε, their logs and their resume."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vla_edge.files import write_json, written_beside
from vla_edge.policies.smolvla.policy import SmolVLAPolicy
from vla_edge.training.craft.anchor_features import check_path, features_of
from vla_edge.training.craft.anchors import AnchorCache
from vla_edge.training.craft.conflict_projection import (
    Gradients,
    Merged,
    combine,
    epsilon_at,
    next_multiplier,
    retention_loss,
)
from vla_edge.training.frozen.prefix_cache import KeptAnchors
from vla_edge.training.run_config import CraftConfig
from vla_edge.training.sampler import QuotaSampler, SamplerState, Source

STATE_FILE = "craft_state.json"
HISTORY_FILE = "lambda_history.csv"
HISTORY = ("step", "lambda", "epsilon", "retention_loss", "grad_cos", "grad_conflict")


@dataclass
class Retention:
    """The constraint's state: multiplier λ and where the anchor sampler stands."""

    config: CraftConfig
    cache: AnchorCache
    total_steps: int
    seed: int
    multiplier: float = field(init=False)
    position: SamplerState = field(init=False)

    def __post_init__(self) -> None:
        self.sampler = QuotaSampler([Source("anchors", len(self.cache), 1.0)], self.config.anchor_batch, self.seed)
        self.position = self.sampler.start()
        self.multiplier = self.config.lambda_start

    def due(self, step: int) -> bool:
        """Whether optimiser step `step` (from 0) computes a retention gradient. Not the first: the student still is the
        teacher, and the merge with a gradient of zero would only weaken the task's."""
        return step > 0 and step % self.config.every == 0

    def keep_scenes(self, policy: SmolVLAPolicy, place: Path, kind: str, device: torch.device) -> None:
        """Let the anchors' scenes be read from `place` (`--cache-prefix`) instead of computed at each gradient."""
        kept = KeptAnchors(self.cache, policy, place, kind, self.config.anchor_batch)
        kept.fill(device)
        self.cache.scenes = kept

    def check(self, policy: SmolVLAPolicy, device: torch.device) -> None:
        """TrainingError when no trained weight reaches a feature; draws nothing and leaves the random state."""
        inputs, _ = self.cache.batch([0], device)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            check_path(features_of(policy, inputs, self.cache.meta.features), policy)

    def loss(self, policy: SmolVLAPolicy, device: torch.device) -> Tensor:
        """The retention loss on the next anchors: the mean over features, each divided by the teacher's spread unless
        `raw`. Advances the anchor sampler."""
        draw = self.sampler.draw(self.position)
        self.position = draw.after
        inputs, teacher = self.cache.batch([frame for _, frame in draw.picks], device)
        student = features_of(policy, inputs, self.cache.meta.features)
        losses = [
            retention_loss(student[name], teacher[name], self.config.loss)
            / (1.0 if self.config.raw else self.cache.scale(name, self.config.loss))
            for name in teacher
        ]
        return torch.stack(losses).mean()

    def step(self, step: int, task: Gradients, retention: Gradients, loss: float) -> tuple[Merged, dict[str, Any]]:
        """Merge with the λ from before, then move λ. Returns the gradients and the numbers to log."""
        epsilon = epsilon_at(step, self.total_steps, self.config)
        merged = combine(task, retention, self.multiplier, self.config)
        row = {
            "retention_loss": loss,
            "lambda": self.multiplier,
            "epsilon": epsilon,
            "grad_cos": merged.cosine,
            "grad_conflict": merged.conflict,
            "cache_type": self.cache.meta.cache_type,
        }
        self.multiplier = next_multiplier(self.multiplier, loss, epsilon, self.config)
        return merged, row

    def save(self, step: int) -> dict[str, Any]:
        """JSON values of the state after `step` optimiser steps (which is also ε's position)."""
        return {
            "step": step,
            "lambda": self.multiplier,
            "epsilon": epsilon_at(step, self.total_steps, self.config),
            "anchors": self.sampler.save(self.position),
            "cache": self.cache.digest,
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Continue from what `save` gave; TrainingError when the cache is another."""
        self.cache.require(str(saved["cache"]))
        self.multiplier = float(saved["lambda"])
        self.position = self.sampler.restore(saved["anchors"])


def append_history(run: Path, step: int, row: Mapping[str, Any]) -> None:
    """One line of `lambda_history.csv` per retention gradient."""
    file = run / HISTORY_FILE
    new = not file.exists()
    with file.open("a", newline="") as stream:
        writer = csv.writer(stream)
        if new:
            writer.writerow(HISTORY)
        writer.writerow([step, *(row[name] if name != "grad_conflict" else int(row[name]) for name in HISTORY[1:])])


def cut_history(run: Path, step: int) -> None:
    """Drop lines after `step`: a resumed run writes them again."""
    file = run / HISTORY_FILE
    if not file.is_file():
        return
    with file.open(newline="") as stream:
        rows = list(csv.reader(stream))
    kept = rows[:1] + [row for row in rows[1:] if row and int(row[0]) <= step]
    with written_beside(file) as partial, partial.open("w", newline="") as stream:
        csv.writer(stream).writerows(kept)


def write_state(run: Path, state: Mapping[str, Any]) -> None:
    write_json(run / STATE_FILE, state)
