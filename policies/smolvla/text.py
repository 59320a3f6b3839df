# SPDX-License-Identifier: Apache-2.0
"""The text model: Llama-style layers that fill the key-value cache of the prefix.

The same layer class serves the experts. Attribute names follow the
checkpoint's keys. Arithmetic: docs/policy.md §1.7–1.9.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from vla_edge.policies.smolvla.backbone import TextConfig

ROPE_BASE = 10_000.0
"""The backbone's own `rope_theta` is ignored, as in LeRobot."""


class KeyValue(NamedTuple):
    """One layer's cache: keys after RoPE and plain values, each [B, rows, kv_heads, head_dim]."""

    key: Tensor
    value: Tensor


class RMSNorm(nn.Module):
    """x / rms(x) · weight, in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., width] → the same shape and type."""
        exact = hidden.float()
        exact = exact * torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * exact.to(hidden.dtype)


class Projections(nn.Module):
    """The four linear maps of one attention; `key_input` differs from `width` where keys come from the cache."""

    def __init__(self, width: int, key_input: int, text: TextConfig) -> None:
        super().__init__()
        self.head_dim = text.head_dim
        self.q_proj = nn.Linear(width, text.heads * text.head_dim, bias=False)
        self.k_proj = nn.Linear(key_input, text.kv_heads * text.head_dim, bias=False)
        self.v_proj = nn.Linear(key_input, text.kv_heads * text.head_dim, bias=False)
        self.o_proj = nn.Linear(text.heads * text.head_dim, width, bias=False)

    def query(self, hidden: Tensor, positions: Tensor) -> Tensor:
        """[B, rows, width] → rotated queries [B, rows, heads, head_dim]."""
        return rotate(self.q_proj(hidden).unflatten(-1, (-1, self.head_dim)), positions)

    def key_value(self, hidden: Tensor, positions: Tensor) -> KeyValue:
        """[B, rows, width] → rotated keys and plain values."""
        key = self.k_proj(hidden).unflatten(-1, (-1, self.head_dim))
        value = self.v_proj(hidden).unflatten(-1, (-1, self.head_dim))
        return KeyValue(rotate(key, positions), value)

    def project_cache(self, cache: KeyValue) -> KeyValue:
        """Keys and values of a cross-attending expert layer, made of the text layer's cache; no second rotation."""
        key = self.k_proj(cache.key.flatten(2)).unflatten(-1, (-1, self.head_dim))
        value = self.v_proj(cache.value.flatten(2)).unflatten(-1, (-1, self.head_dim))
        return KeyValue(key, value)


class Mlp(nn.Module):
    """SwiGLU."""

    def __init__(self, width: int, mlp_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, mlp_size, bias=False)
        self.up_proj = nn.Linear(width, mlp_size, bias=False)
        self.down_proj = nn.Linear(mlp_size, width, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., width] → the same shape."""
        return self.down_proj(functional.silu(self.gate_proj(hidden)) * self.up_proj(hidden))


class Layer(nn.Module):
    """One layer's parts. Who attends to what is decided outside: see `TextModel` and `expert.py`."""

    def __init__(self, width: int, mlp_size: int, key_input: int, text: TextConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(width, text.rms_norm_eps)
        self.self_attn = Projections(width, key_input, text)
        self.post_attention_layernorm = RMSNorm(width, text.rms_norm_eps)
        self.mlp = Mlp(width, mlp_size)

    def finish(self, hidden: Tensor, mixed: Tensor) -> Tensor:
        """What follows the attention: output projection, residual, MLP, residual. `mixed` [B, rows, heads·head_dim]."""
        hidden = hidden + self.self_attn.o_proj(mixed)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class TextModel(nn.Module):
    """The kept layers of the backbone's text model."""

    def __init__(self, config: TextConfig, layers: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.embed_tokens = nn.Embedding(config.vocab_size, width)
        self.layers: list[Layer] = nn.ModuleList(  # type: ignore[assignment]  # iterated as its element type
            Layer(width, config.mlp_size, width, config) for _ in range(layers)
        )
        self.norm = RMSNorm(width, config.rms_norm_eps)

    def forward(
        self, hidden: Tensor, visible: Tensor, positions: Tensor, cache: list[KeyValue] | None = None
    ) -> tuple[Tensor, list[KeyValue]]:
        """Run rows through all layers.

        hidden [B, rows, width]; visible bool [B, rows, earlier + rows], true where the row may look; positions
        [B, rows]; cache: keys and values of earlier rows, which these rows see before their own.
        Returns the last layer's output before `norm`, and each layer's keys and values of these rows alone.
        """
        own: list[KeyValue] = []
        for index, layer in enumerate(self.layers):
            normed = layer.input_layernorm(hidden)
            rows = layer.self_attn.key_value(normed, positions)
            seen = rows if cache is None else join(cache[index], rows)
            hidden = layer.finish(hidden, attend(layer.self_attn.query(normed, positions), seen, visible))
            own.append(rows)
        return hidden, own


def float32_kept(like: Tensor) -> AbstractContextManager[object]:
    """A block whose matrix products stay float32 where training runs under autocast; nothing otherwise."""
    kind = like.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def join(earlier: KeyValue, later: KeyValue) -> KeyValue:
    """Rows of `earlier`, then rows of `later`."""
    return KeyValue(torch.cat((earlier.key, later.key), dim=1), torch.cat((earlier.value, later.value), dim=1))


def rotate(heads: Tensor, positions: Tensor) -> Tensor:
    """RoPE on [B, rows, heads, head_dim] at integer positions [B, rows]: half-split, float32."""
    half = heads.shape[-1] // 2
    exponents = (2.0 / heads.shape[-1]) * torch.arange(half, dtype=torch.float32, device=heads.device)
    angles = positions[..., None, None].float() / ROPE_BASE**exponents
    sine, cosine = torch.sin(angles), torch.cos(angles)
    first, second = heads.float().split(half, dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1).to(heads.dtype)


def attend(query: Tensor, seen: KeyValue, visible: Tensor) -> Tensor:
    """Grouped-query attention with float32 softmax.

    query [B, rows, heads, head_dim], seen [B, keys, kv_heads, head_dim], visible bool [B, rows, keys] → [B, rows,
    heads·head_dim]. A row that sees nothing (padding) averages everything, as in LeRobot; nobody reads it.
    """
    groups = query.shape[2] // seen.key.shape[2]
    key = seen.key.repeat_interleave(groups, dim=2).transpose(1, 2).float()
    value = seen.value.repeat_interleave(groups, dim=2).transpose(1, 2)
    with float32_kept(query):
        scores = query.transpose(1, 2).float() @ key.transpose(2, 3) * query.shape[-1] ** -0.5
        scores = torch.where(visible[:, None], scores, torch.finfo(torch.float32).min)
        weights = torch.softmax(scores, dim=-1)
    mixed = weights.to(value.dtype) @ value
    return mixed.transpose(1, 2).flatten(2)
