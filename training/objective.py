"""What is minimised per batch, as one module, so that several processes can wrap it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from vla_edge.policies.smolvla.config import ACTION
from vla_edge.policies.smolvla.flow import sample_time
from vla_edge.policies.smolvla.losses import masked_loss
from vla_edge.policies.smolvla.policy import SmolVLAPolicy
from vla_edge.policies.smolvla.scaling import pad_last
from vla_edge.training.training_frames import IS_PAD


class Objective(nn.Module):
    """The policy's own loss; with `padded_dims` the flow-matching loss over all `max_action_dim` dimensions, as the
    published base model was trained."""

    def __init__(self, policy: SmolVLAPolicy, padded_dims: bool) -> None:
        super().__init__()
        self.policy = policy
        self.padded_dims = padded_dims

    def forward(
        self, batch: Mapping[str, Tensor], noise: Tensor | None = None, time: Tensor | None = None
    ) -> tuple[Tensor, dict[str, float]]:
        """The loss and the numbers to log. noise [B, C, A] and time [B] are drawn from torch's global state when
        None."""
        if not self.padded_dims:
            loss, parts = self.policy(batch, noise=noise, time=time)
            return loss, numbers(parts)
        policy = self.policy
        actions = pad_last(batch[ACTION], policy.config.max_action_dim)
        noise = noise if noise is not None else actions.new_empty(actions.shape).normal_()
        time = time if time is not None else sample_time(actions.shape[0], actions.device)
        losses = policy.model.losses(policy.prepare(batch), actions, noise, time)
        loss, parts = masked_loss(losses, batch[IS_PAD], policy.config.max_action_dim)
        return loss, numbers(parts)


def numbers(parts: Mapping[str, Any]) -> dict[str, float]:
    """The scalars among the parts of a loss; tensors of single losses are left out."""
    return {name: float(value) for name, value in parts.items() if isinstance(value, (int, float))}
