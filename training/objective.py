# SPDX-License-Identifier: Apache-2.0
"""What is minimised, and how: the loss of a batch as one module, AdamW and its learning rate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import cos, pi
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from vla_edge.policies.features import ACTION
from vla_edge.policies.scaling import pad_last
from vla_edge.policies.smolvla.delta import shift_chunk
from vla_edge.policies.smolvla.flow import sample_time
from vla_edge.policies.smolvla.losses import masked_loss
from vla_edge.policies.smolvla.policy import SmolVLAPolicy
from vla_edge.training.run_config import OptimizerConfig, ScheduleConfig
from vla_edge.training.training_frames import EARLIER, IS_PAD


class Objective(nn.Module):
    """The policy's own loss; with `padded_dims` the flow-matching loss over all `max_action_dim` dimensions, as the
    published base model was trained; with a `teacher` the loss of distilling."""

    def __init__(self, policy: Any, padded_dims: bool, teacher: Any = None) -> None:
        super().__init__()
        self.policy = policy
        self.padded_dims = padded_dims
        self._teachers = () if teacher is None else (teacher,)  # no part of this module: nothing of it trains

    def forward(
        self, batch: Mapping[str, Tensor], noise: Tensor | None = None, time: Tensor | None = None, share: float = 1.0
    ) -> tuple[Tensor, dict[str, float]]:
        """The loss and the numbers to log. noise [B, C, A] and time [B] are drawn from torch's global state when None;
        share: what the errors are multiplied by (`step_shares`)."""
        for teacher in self._teachers:
            loss, parts = self.policy.distilling_loss(batch, teacher, noise)
            return loss, numbers(parts)
        if not self.padded_dims:
            loss, parts = self.policy(batch, noise=noise, time=time, share=share)
            return loss, numbers(parts)
        policy = self.policy
        actions = pad_last(batch[ACTION], policy.config.max_action_dim)
        noise = noise if noise is not None else actions.new_empty(actions.shape).normal_()
        time = time if time is not None else sample_time(actions.shape[0], actions.device)
        losses = policy.model.losses(policy.prepare(batch), actions, noise, time)
        loss, parts = masked_loss(losses, batch[IS_PAD], policy.config.max_action_dim, share)
        return loss, numbers(parts)


def with_stale_context(batch: dict[str, Tensor], policy: SmolVLAPolicy) -> dict[str, Tensor]:
    """Predict each sample's earlier chunk with fresh noise (frozen policy), shift it by its own k, and add it as
    `delta_context` [B, C, A] with `delta_context_is_pad` bool [B, C]. A batch without earlier frames is returned as
    is."""
    if "shift" not in batch:
        return batch
    earlier = {name.removeprefix(EARLIER): value for name, value in batch.items() if name.startswith(EARLIER)}
    model = policy.model
    with torch.no_grad():
        prefix = model.prefix_of(policy.prepare(earlier))
        shape = (len(batch["shift"]), policy.config.chunk_size, policy.config.max_action_dim)
        chunk = model.integrate(prefix, torch.randn(shape, device=batch["shift"].device), policy.config.num_steps)
    shifted = [shift_chunk(chunk[i : i + 1], int(k)) for i, k in enumerate(batch["shift"])]
    rest = {name: value for name, value in batch.items() if not name.startswith(EARLIER) and name != "shift"}
    rest["delta_context"] = torch.cat([context for context, _ in shifted])
    rest["delta_context_is_pad"] = torch.cat([held for _, held in shifted])
    return rest


def valid_steps(batch: Mapping[str, Tensor]) -> int:
    """The steps of a batch that its loss counts: inside the episode and, with the stale delta target, covered by the
    shifted chunk."""
    valid = ~batch[IS_PAD]
    if "shift" in batch:
        steps = torch.arange(valid.shape[1], device=valid.device)
        valid = valid & (steps + batch["shift"][:, None] < valid.shape[1])
    return int(valid.sum())


def step_shares(counts: Sequence[int], total: int, batches: int) -> list[float]:
    """What the errors of each batch are multiplied by so that the mean over the `batches` of a step (all processes) is
    one sum divided by the step's `total` valid steps; 1.0 for batches of equal count."""
    return [count * batches / max(total, 1) for count in counts]


def numbers(parts: Mapping[str, Any]) -> dict[str, float]:
    """The scalars among the parts of a loss; tensors of single losses are left out."""
    return {name: float(value) for name, value in parts.items() if isinstance(value, (int, float))}


def lr_factor(step: int, schedule: ScheduleConfig, peak_lr: float, total_steps: int) -> float:
    """Learning rate of optimiser step `step` (from 0) divided by `peak_lr`.

    Linear warm-up, then a half cosine from the peak to `decay_lr` (LeRobot's `cosine_decay_with_warmup`): a run shorter
    than `decay_steps` has both stretches scaled to its length, so that it ends at `decay_lr` too.
    """
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
