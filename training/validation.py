# SPDX-License-Identifier: Apache-2.0
"""Validation with fixed noise and times, so that two numbers differ by the weights alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vla_edge.policies.features import ACTION
from vla_edge.policies.scaling import pad_last
from vla_edge.training.objective import Objective, valid_steps
from vla_edge.training.stale_chunk import with_stale_context
from vla_edge.training.training_frames import Frames, collate, to_device

SEED = 20_000


@torch.no_grad()
def validation_losses(
    objective: Objective, tasks: Sequence[Frames], frames: int, batch_size: int, device: torch.device
) -> dict[str, float]:
    """The objective's loss per task over `frames` evenly spaced held-out frames.

    What is random depends on the frame's place only; torch's global random state is left as it was.
    """
    policy = objective.policy
    modes = {name: module.training for name, module in objective.named_modules()}
    objective.eval()
    losses = {}
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for task in tasks:
            chosen = np.unique(np.linspace(0, len(task) - 1, min(frames, len(task))).round().astype(int))
            total, counted = 0.0, 0
            for number, part in enumerate(np.array_split(chosen, -(-len(chosen) // batch_size))):
                torch.manual_seed(SEED + number)
                batch = collate([task.sample(int(i), 0) for i in part], policy)
                ready = with_stale_context(to_device(batch, device), policy)
                if policy.config.noised:
                    noise, time = fixed_noise(batch[ACTION], policy.config.max_action_dim, number)
                    loss, _ = objective(ready, noise=noise.to(device), time=time.to(device))
                else:
                    loss, _ = objective(ready)
                steps = valid_steps(batch)
                total, counted = total + float(loss) * steps, counted + steps
            losses[task.data.name] = total / counted
    for name, module in objective.named_modules():
        module.training = modes[name]
    return losses


def fixed_noise(actions: Tensor, dimensions: int, key: int) -> tuple[Tensor, Tensor]:
    """Noise [B, C, dimensions] and times [B], evenly spread over the training distribution's quantiles (t = u^(2/3) is
    Beta(1.5, 1))."""
    generator = torch.Generator().manual_seed(SEED + key)
    noise = torch.randn(pad_last(actions, dimensions).shape, generator=generator)
    quantiles = (torch.arange(len(actions)) + 0.5) / len(actions)
    return noise, quantiles ** (2 / 3) * 0.999 + 0.001


def weighted(losses: dict[str, float], weights: dict[str, float]) -> float:
    """Mean of the tasks' losses under their shares in the mix; tasks of weight 0 do not count."""
    total = sum(weights.get(name, 0.0) for name in losses)
    if not total:
        return float("nan")
    return sum(loss * weights.get(name, 0.0) for name, loss in losses.items()) / total
