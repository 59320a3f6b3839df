"""The optimiser and the learning rate over the run.

Linear warm-up, then a half cosine from the peak to `decay_lr` (LeRobot's
`cosine_decay_with_warmup`): a run shorter than `decay_steps` has both
stretches scaled to its length, so that it ends at `decay_lr` too.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import cos, pi

import torch
from torch.optim.lr_scheduler import LambdaLR

from vla_edge.training.run_config import OptimizerConfig, ScheduleConfig


def lr_factor(step: int, schedule: ScheduleConfig, peak_lr: float, total_steps: int) -> float:
    """Learning rate of optimiser step `step` (from 0) divided by `peak_lr`."""
    warmup, decay = schedule.warmup_steps, schedule.decay_steps
    if total_steps < decay:
        warmup, decay = int(warmup * total_steps / decay), total_steps
    if step < warmup:
        first = 1 / (warmup + 1)
        return first + (1 - first) * step / warmup
    floor = schedule.decay_lr / peak_lr
    return floor + (1 - floor) * 0.5 * (1 + cos(pi * min(step, decay) / max(decay, 1)))


def make_optimizer(
    parameters: Iterable[torch.nn.Parameter], config: OptimizerConfig, schedule: ScheduleConfig, total_steps: int
) -> tuple[torch.optim.AdamW, LambdaLR]:
    """AdamW over `parameters` and its schedule, one scheduler step per optimiser step."""
    optimizer = torch.optim.AdamW(
        list(parameters), lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay
    )
    return optimizer, LambdaLR(optimizer, lambda step: lr_factor(step, schedule, config.lr, total_steps))
