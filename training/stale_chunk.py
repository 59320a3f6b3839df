# SPDX-License-Identifier: Apache-2.0
"""What delta training adds to a batch: the chunk that was predicted k frames earlier, as it would stand now."""

from __future__ import annotations

import torch
from torch import Tensor

from vla_edge.policies.smolvla.delta import shift_chunk
from vla_edge.policies.smolvla.policy import SmolVLAPolicy
from vla_edge.training.training_frames import EARLIER


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
