# SPDX-License-Identifier: Apache-2.0
"""The cut into prefix and state is exact, and an independent implementation agrees, for many configurations.

The second implementation is plain float64 numpy written from POLICY.md §1.7–1.12: prefix, state and actions as one
sequence, head by head and row by row of the specification, with nothing cached and nothing shared with the policies
room. LeRobot's golden data cover one configuration; this covers the others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

Array = np.ndarray
TOLERANCE = 1e-5  # of the largest value: float32 in another order of summation
ORACLE_TOLERANCE = 3e-5  # float32 through all layers against float64; 1e-5 is met by most, not all, weights


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "self attention everywhere": {"attention_mode": "self_attn"},
    "self attention in every third layer": {"self_attn_every_n_layers": 3},
    "self attention in every layer by rhythm": {"self_attn_every_n_layers": 1},
    "cross attention everywhere": {"self_attn_every_n_layers": 0},
    "all layers of the backbone": {"num_vlm_layers": 0},
    "two layers": {"num_vlm_layers": 2},
    "half as many expert layers, crossing": {"num_expert_layers": 2, "self_attn_every_n_layers": -1},
    "half as many expert layers, self attention": {"num_expert_layers": 2, "attention_mode": "self_attn"},
    "narrow expert": {"expert_width_multiplier": 0.5},
    "special image tokens": {"add_image_special_tokens": True},
    "empty camera": {"empty_cameras": 1},
    "empty camera with special tokens": {"empty_cameras": 2, "add_image_special_tokens": True},
    "prefix length": {"prefix_length": 90},
    "prefix length that is too short to matter": {"prefix_length": 3},
    "language padded to the longest": {"pad_language_to": "longest"},
    "short language": {"tokenizer_max_length": 6},
    "short chunk and few steps": {"chunk_size": 7, "n_action_steps": 7, "num_steps": 3},
    "other periods": {"min_period": 1e-2, "max_period": 1.0},
    "narrow state and action": {"max_state_dim": 8, "max_action_dim": 10},
    "larger pictures than the position table": {"resize_imgs_with_padding": [192, 192]},
    "smaller pictures than the position table": {"resize_imgs_with_padding": [64, 64]},
}


def relative(ours: Any, expected: Any) -> float:
    a, b = (np.asarray(item, dtype=np.float64) for item in (ours, expected))
    assert a.shape == b.shape
    return float(np.abs(a - b).max() / np.abs(b).max())


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_split_equals_monolith_and_an_independent_implementation(name: str, random_policy, observe) -> None:
    policy = random_policy(**VARIANTS[name])
    config, model = policy.config, policy.model
    inputs = policy.prepare(policy.preprocess(observe(policy)))
    rows, mask = model.embed_prefix(
        model.embed_images(inputs.images), inputs.image_masks, inputs.token_ids, inputs.token_mask
    )
    together = model.run_together(rows, mask, inputs.state)
    split = model.run_state(model.run_prefix(rows, mask), inputs.state)
    for mine, whole in zip(split.cache, together.cache, strict=True):
        for part, full in zip(mine, whole, strict=True):
            assert relative(part[split.mask], full[together.mask]) < TOLERANCE
    noise = torch.randn(1, config.chunk_size, config.max_action_dim, generator=torch.Generator().manual_seed(5))
    assert (
        relative(model.integrate(split, noise, config.num_steps), model.integrate(together, noise, config.num_steps))
        < TOLERANCE
    )

    text, plan = policy.backbone.text, model.vlm_with_expert.plan
    shape = Shape(
        layers=plan.layers,
        experts=sum(expert is not None for expert in plan.expert_of),
        heads=text.heads,
        kv_heads=text.kv_heads,
        head_dim=text.head_dim,
        eps=text.rms_norm_eps,
        every=config.self_attn_every_n_layers,
        crossing=config.attention_mode == "cross_attn",
        periods=(config.min_period, config.max_period),
    )
    weights = {key: value.numpy() for key, value in policy.state_dict().items()}
    embedded, padded, _ = model.with_state(rows, mask, model.embed_state(inputs.state))
    expected = velocity(
        weights, shape, embedded[0].numpy(), padded[0].numpy(), noise[0].numpy(), float(torch.tensor(0.7))
    )
    assert relative(model.denoise_step(split, noise, torch.tensor([0.7]))[0], expected) < ORACLE_TOLERANCE


@dataclass(frozen=True)
class Shape:
    """The numbers the oracle needs; `every` is self_attn_every_n_layers, `crossing` whether attention_mode says
    cross."""

    layers: int
    experts: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    every: int
    crossing: bool
    periods: tuple[float, float]


def velocity(weights: dict[str, Array], shape: Shape, prefix: Array, mask: Array, actions: Array, time: float) -> Array:
    """prefix [rows, H] embedded with the state's row last among the valid ones; mask bool [rows]; actions [C, A] → [C,
    A]."""
    model = {name.removeprefix("model."): value.astype(np.float64) for name, value in weights.items()}
    suffix = _suffix(model, shape, actions, time)
    state = int(np.flatnonzero(mask).max())
    p, s = prefix.astype(np.float64), suffix
    p_rows, s_rows = len(p), len(s)
    positions = np.cumsum(np.concatenate((mask, np.ones(s_rows, bool)))) - 1
    sees = np.zeros((p_rows + s_rows, p_rows + s_rows), bool)
    for row in range(p_rows):
        for key in range(p_rows):
            sees[row, key] = mask[row] and mask[key] and (key != state or row == state)
    for row in range(s_rows):
        sees[p_rows + row, :p_rows] = mask
        sees[p_rows + row, p_rows : p_rows + row + 1] = True
    stride = shape.layers // shape.experts
    for index in range(shape.layers):
        text = _layer(model, f"vlm_with_expert.vlm.model.text_model.layers.{index}.")
        expert = _layer(model, f"vlm_with_expert.lm_expert.layers.{index // stride}.") if index % stride == 0 else None
        normed = _norm(p, text["input_layernorm.weight"], shape.eps)
        q, k, v = (_heads(normed @ text[f"self_attn.{part}_proj.weight"].T, shape) for part in "qkv")
        q, k = _rope(q, positions[:p_rows]), _rope(k, positions[:p_rows])
        mixed = _attention(q, k, v, sees[:p_rows, :p_rows])
        if expert is not None:
            normed = _norm(s, expert["input_layernorm.weight"], shape.eps)
            eq = _heads(normed @ expert["self_attn.q_proj.weight"].T, shape)
            if shape.crossing and not (shape.every > 0 and index % shape.every == 0):
                ek, ev = (
                    _heads(x.reshape(p_rows, -1) @ expert[f"self_attn.{part}_proj.weight"].T, shape)
                    for x, part in ((k, "k"), (v, "v"))
                )
                s_mixed = _attention(_rope(eq, np.arange(s_rows)), ek, ev, sees[p_rows:, :p_rows])
            else:
                ek, ev = (_heads(normed @ expert[f"self_attn.{part}_proj.weight"].T, shape) for part in "kv")
                ek = _rope(ek, positions[p_rows:])
                s_mixed = _attention(
                    _rope(eq, positions[p_rows:]), np.concatenate((k, ek)), np.concatenate((v, ev)), sees[p_rows:]
                )
            s = _finish(s, s_mixed, expert, shape.eps)
        p = _finish(p, mixed, text, shape.eps)
    s = _norm(s, model["vlm_with_expert.lm_expert.norm.weight"], shape.eps)
    return s @ model["action_out_proj.weight"].T + model["action_out_proj.bias"]


def _suffix(model: dict[str, Array], shape: Shape, actions: Array, time: float) -> Array:
    rows = actions.astype(np.float64) @ model["action_in_proj.weight"].T + model["action_in_proj.bias"]
    half = rows.shape[1] // 2
    low, high = shape.periods
    angles = [2 * math.pi * time / (low * (high / low) ** (index / (half - 1))) for index in range(half)]
    wave = np.array([math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles])
    rows = (
        np.concatenate((rows, np.tile(wave, (len(rows), 1))), axis=1) @ model["action_time_mlp_in.weight"].T
        + model["action_time_mlp_in.bias"]
    )
    rows = rows / (1 + np.exp(-rows))
    return rows @ model["action_time_mlp_out.weight"].T + model["action_time_mlp_out.bias"]


def _layer(model: dict[str, Array], prefix: str) -> dict[str, Array]:
    return {name.removeprefix(prefix): value for name, value in model.items() if name.startswith(prefix)}


def _norm(x: Array, weight: Array, eps: float) -> Array:
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps) * weight


def _heads(x: Array, shape: Shape) -> Array:
    return x.reshape(len(x), -1, shape.head_dim)


def _rope(x: Array, positions: Array) -> Array:
    half = x.shape[-1] // 2
    out = np.empty_like(x)
    for index in range(half):
        angle = positions / 10000.0 ** (index / half)
        cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
        out[:, :, index] = x[:, :, index] * cos - x[:, :, index + half] * sin
        out[:, :, index + half] = x[:, :, index + half] * cos + x[:, :, index] * sin
    return out


def _attention(q: Array, k: Array, v: Array, sees: Array) -> Array:
    groups = q.shape[1] // k.shape[1]
    out = np.zeros((len(q), q.shape[1], q.shape[2]))
    for head in range(q.shape[1]):
        scores = q[:, head] @ k[:, head // groups].T / math.sqrt(q.shape[2])
        for row in range(len(q)):
            seen = np.flatnonzero(sees[row])
            if len(seen):
                weight = np.exp(scores[row, seen] - scores[row, seen].max())
                out[row, head] = weight / weight.sum() @ v[seen, head // groups]
    return out.reshape(len(q), -1)


def _finish(x: Array, mixed: Array, layer: dict[str, Array], eps: float) -> Array:
    x = x + mixed @ layer["self_attn.o_proj.weight"].T
    normed = _norm(x, layer["post_attention_layernorm.weight"], eps)
    gate = normed @ layer["mlp.gate_proj.weight"].T
    return x + (gate / (1 + np.exp(-gate)) * (normed @ layer["mlp.up_proj.weight"].T)) @ layer["mlp.down_proj.weight"].T
