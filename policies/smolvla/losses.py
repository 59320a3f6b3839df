# SPDX-License-Identifier: Apache-2.0
"""From elementwise errors to one number."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def masked_loss(
    losses: Tensor, is_pad: Tensor | None, dimensions: int, share: float = 1.0
) -> tuple[Tensor, dict[str, Any]]:
    """Mean of elementwise losses [B, C, A] over the first `dimensions` and the steps that `is_pad` bool [B, C] does not
    mark, times `share`, with the intermediate tensors under LeRobot's names."""
    valid = torch.ones_like(losses[:, :, 0]) if is_pad is None else (~is_pad).to(losses.dtype)
    bounded = losses * valid[:, :, None]
    real = bounded[:, :, :dimensions]
    loss = share * real.sum() / (valid.sum() * dimensions).clamp(min=1)
    return loss, {
        "losses_after_forward": losses.detach().clone(),
        "losses_after_in_ep_bound": bounded.detach().clone(),
        "losses_after_rm_padding": real.detach().clone(),
        "loss": loss.item(),
    }
