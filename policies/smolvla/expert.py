# SPDX-License-Identifier: Apache-2.0
"""The action expert: a narrower twin of the text model that reads its cache.

Even layers self-attend over [prefix cache; own rows]; odd layers cross-attend
to the prefix alone, through their own k_proj and v_proj (docs/policy.md §1.10).
The delta expert is the same class with its own weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vla_edge.policies.smolvla.backbone import TextConfig
from vla_edge.policies.smolvla.config import LayerPlan, SmolVLAConfig, expert_crosses
from vla_edge.policies.smolvla.text import KeyValue, Layer, RMSNorm, attend, join


class Expert(nn.Module):
    """Expert layers and the final norm."""

    def __init__(self, config: SmolVLAConfig, text: TextConfig, plan: LayerPlan) -> None:
        super().__init__()
        self.plan = plan
        width = expert_width(config, text)
        count = sum(expert is not None for expert in plan.expert_of)
        cached = text.kv_heads * text.head_dim
        self.layers: list[Layer] = nn.ModuleList(  # type: ignore[assignment] # iterated as its element type
            Layer(width, expert_mlp_size(width), cached if expert_crosses(config, index) else width, text)
            for index in range(count)
        )
        self.norm = RMSNorm(width, text.rms_norm_eps)

    def forward(self, hidden: Tensor, prefix: Sequence[KeyValue], prefix_mask: Tensor, visible: Tensor) -> Tensor:
        """One pass over the suffix.

        hidden [B, rows, expert width]; prefix: the text model's cache, state row included, [B, prefix rows, ...];
        prefix_mask bool [B, prefix rows]; visible bool [B, rows, rows] among the suffix. Returns the normed output.
        """
        rows = hidden.shape[1]
        sees_prefix = prefix_mask[:, None, :].expand(-1, rows, -1)
        sees_all = torch.cat((sees_prefix, visible.expand(hidden.shape[0], -1, -1)), dim=2)
        first = prefix_mask.sum(dim=1, keepdim=True)
        steps = torch.arange(rows, device=hidden.device)[None]
        for index, cache in enumerate(prefix):
            expert = self.plan.expert_of[index]
            if expert is None:
                continue
            layer = self.layers[expert]
            normed = layer.input_layernorm(hidden)
            if self.plan.cross[index]:
                seen = layer.self_attn.project_cache(cache)
                mixed = attend(layer.self_attn.query(normed, steps), seen, sees_prefix)
            else:
                seen = join(cache, layer.self_attn.key_value(normed, first + steps))
                mixed = attend(layer.self_attn.query(normed, first + steps), seen, sees_all)
            hidden = layer.finish(hidden, mixed)
        return self.norm(hidden)


def expert_width(config: SmolVLAConfig, text: TextConfig) -> int:
    """The expert's hidden size, truncated as LeRobot does."""
    return int(text.hidden_size * config.expert_width_multiplier)


def expert_mlp_size(width: int) -> int:
    """Four times two thirds of the width, rounded up to a multiple of 256 (LeRobot's `get_intermediate_size`)."""
    return 256 * -(-4 * int(2 * width / 3) // 256)
