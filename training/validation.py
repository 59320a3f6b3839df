# SPDX-License-Identifier: Apache-2.0
"""Validation with fixed noise and times, so that two numbers differ by the weights alone.

A task with fewer held-out frames than are asked for is looked at several times, each time under other noise: with one
draw a frame, luck would choose the best checkpoint.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from vla_edge.policies.features import ACTION
from vla_edge.policies.scaling import pad_last
from vla_edge.training.objective import Objective, valid_steps, with_stale_context
from vla_edge.training.training_frames import Frames, collate, to_device

SEED = 20_000


@torch.no_grad()
def validation_numbers(
    objective: Objective, tasks: Sequence[Frames], frames: int, batch_size: int, device: torch.device
) -> dict[str, dict[str, float]]:
    """Per task the mean of every number of the objective's loss over `frames` evenly spaced held-out frames (each as
    often as it takes), and `steps`, what it is a mean of.

    What is random depends on the frame's place and draw only; torch's global random state is left as it was.
    """
    policy = objective.policy
    modes = {name: module.training for name, module in objective.named_modules()}
    objective.eval()
    found = {}
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for task in tasks:
            once = np.unique(np.linspace(0, len(task) - 1, min(frames, len(task))).round().astype(int))
            chosen = np.resize(once, max(frames, len(once)))
            sums: Counter[str] = Counter()
            for number, part in enumerate(np.array_split(chosen, -(-len(chosen) // batch_size))):
                torch.manual_seed(SEED + number)
                batch = collate([task.sample(int(i), 0) for i in part], policy)
                ready = with_stale_context(to_device(batch, device), policy)
                if policy.config.noised:
                    noise, time = fixed_noise(batch[ACTION], policy.config.max_action_dim, number)
                    loss, parts = objective(ready, noise=noise.to(device), time=time.to(device))
                else:
                    loss, parts = objective(ready)
                steps = valid_steps(batch)
                sums.update({name: value * steps for name, value in {**parts, "loss": float(loss)}.items()})
                sums["steps"] += steps
            steps = sums.pop("steps")
            found[task.data.name] = {name: value / steps for name, value in sums.items()} | {"steps": steps}
    for name, module in objective.named_modules():
        module.training = modes[name]
    return found


def validation_losses(
    objective: Objective, tasks: Sequence[Frames], frames: int, batch_size: int, device: torch.device
) -> dict[str, float]:
    """The objective's loss per task (`validation_numbers`)."""
    found = validation_numbers(objective, tasks, frames, batch_size, device)
    return {name: numbers["loss"] for name, numbers in found.items()}


def delta_error(found: Mapping[str, Mapping[str, float]]) -> float | None:
    """The delta expert's error over all held-out frames, divided by that of no correction; None without frames or
    where nothing was to be corrected."""
    of = {
        name: sum(part[name] * part["steps"] for part in found.values())
        for name in ("delta_loss", "delta_loss_of_none")
    }
    return of["delta_loss"] / of["delta_loss_of_none"] if of["delta_loss_of_none"] > 0 else None


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
