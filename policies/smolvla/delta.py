# SPDX-License-Identifier: Apache-2.0
"""The delta expert: one step that corrects a chunk which is already queued.

The queued chunk (normalised) goes in, a velocity v comes out, and the
corrected chunk is chunk + v. Training noises a fresh chunk ("noise") or takes
the chunk predicted k frames earlier, shifted by k ("stale").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as functional
from torch import Tensor

from vla_edge.policies.smolvla.cls import observe
from vla_edge.policies.smolvla.text import float32_kept
from vla_edge.policies.smolvla.vicreg import VicregWeights, vicreg

if TYPE_CHECKING:
    from vla_edge.policies.smolvla.flow import FlowMatching, Inputs, Prefix

DELTA_TIME = 0.5
"""The expert is always asked at this time."""


@dataclass(frozen=True)
class DeltaStep:
    """One delta training step's numbers before reduction.

    losses: squared error [B, C, A]; target_power: squared target [B, C, A], the error of predicting zero; valid: bool
    [B, C], steps that the context covers; cls_loss: scalar VICReg, None without a CLS head.
    """

    losses: Tensor
    target_power: Tensor
    valid: Tensor
    cls_loss: Tensor | None


def predict_velocity(model: FlowMatching, prefix: Prefix, chunk: Tensor) -> tuple[Tensor, Tensor | None]:
    """The velocity float32 [B, C, A] towards the fresh chunk, and the projected action tokens [B, tokens, E] of a
    policy with a CLS head. `prefix` includes the state row; `chunk` [B, C, A] normalised."""
    rows = model.delta_action_in_proj(chunk)
    time = torch.full((chunk.shape[0],), DELTA_TIME, dtype=torch.float32, device=chunk.device)
    rows = torch.cat((rows, model.embed_time(time, rows)), dim=2)
    rows = model.delta_action_time_mlp_out(functional.silu(model.delta_action_time_mlp_in(rows)))
    steps = rows.shape[1]
    tokens = model.config.num_cls_suffix if model.config.use_cls_head else 0
    if tokens:
        rows = torch.cat((rows, model.suf_cls_param.expand(rows.shape[0], -1, -1)), dim=1)
    visible = suffix_mask(steps, tokens, model.config.cls_action_context).to(chunk.device)
    hidden = model.vlm_with_expert.delta_expert(rows, prefix.cache, prefix.mask, visible[None])
    with float32_kept(hidden):
        velocity = model.delta_action_out_proj(hidden[:, :steps].float())
    return velocity, model.act_cls_proj(hidden[:, steps:]) if tokens else None


def suffix_mask(steps: int, tokens: int, context: int) -> Tensor:
    """bool [steps + tokens, steps + tokens]: actions causal among themselves; the first token sees the first `context`
    actions, the last one the last `context`, those between as many evenly between, each itself and no other token; no
    action sees a token."""
    visible = torch.ones(steps + tokens, steps + tokens, dtype=torch.bool).tril()
    visible[steps:, :steps] = False
    for token in range(tokens):
        first = round(token * max(0, steps - context) / (tokens - 1))
        visible[steps + token, first : first + context] = True
    visible[steps:, steps:] = torch.eye(tokens, dtype=torch.bool)
    return visible


def correct_chunk(model: FlowMatching, prefix: Prefix, chunk: Tensor) -> Tensor:
    """The queued chunk [B, C, A] (normalised) corrected for the prefix's observation."""
    velocity, _ = predict_velocity(model, prefix, chunk)
    return chunk + velocity


def training_step(
    model: FlowMatching, inputs: Inputs, noise: tuple[Tensor, Tensor], stale: tuple[Tensor, Tensor] | None
) -> DeltaStep:
    """One step of the delta expert's training.

    noise: [B, C, A] to sample the fresh chunk from, and [B, C, A] to disturb it with (unused with `stale`). stale: the
    chunk predicted k frames earlier and shifted by k [B, C, A], with bool [B, C] marking the steps it does not cover.
    """
    with torch.no_grad():
        scene = model.scene_of(inputs)
        prefix = model.run_state(scene, inputs.state)
        fresh = model.integrate(prefix, noise[0], model.config.num_steps)
    if stale is None:
        context = fresh + model.config.cls_noise_scale * noise[1] * real_dimensions(model, fresh)
        valid = torch.ones_like(fresh[:, :, 0], dtype=torch.bool)
    else:
        context, valid = stale[0], ~stale[1]
    target = fresh - context
    velocity, action_tokens = predict_velocity(model, prefix, context)
    cls_loss = None
    if action_tokens is not None:
        config = model.config
        cls_loss = vicreg(
            observe(model, scene),
            action_tokens,
            VicregWeights(config.vicreg_lambda, config.vicreg_mu, config.vicreg_nu),
        )
    return DeltaStep(functional.mse_loss(velocity, target, reduction="none"), target.square(), valid, cls_loss)


def shift_chunk(chunk: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    """A chunk [B, C, A] as it stands `frames` later: moved to the front, its last action held, and bool [B, C] marking
    the held steps."""
    steps = chunk.shape[1]
    index = (torch.arange(steps, device=chunk.device) + frames).clamp(max=steps - 1)
    held = torch.arange(steps, device=chunk.device) + frames >= steps
    return chunk[:, index], held[None].expand(chunk.shape[0], -1)


def real_dimensions(model: FlowMatching, like: Tensor) -> Tensor:
    """1.0 on the action's real dimensions, 0.0 on padding: [A]."""
    return (torch.arange(like.shape[-1], device=like.device) < model.config.action_dim).to(like.dtype)


def delta_parameters(model: FlowMatching) -> list[tuple[str, torch.nn.Parameter]]:
    """What delta training moves: the delta expert, its projections, the CLS tokens and their projections."""
    prefixes = (
        "delta_",
        "vlm_with_expert.delta_expert.",
        "pre_cls_param",
        "suf_cls_param",
        "obs_cls_proj.",
        "act_cls_proj.",
    )
    return [(name, parameter) for name, parameter in model.named_parameters() if name.startswith(prefixes)]
