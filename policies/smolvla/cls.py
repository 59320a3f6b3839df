# SPDX-License-Identifier: Apache-2.0
"""The CLS head: learnt tokens that watch the observation, and their projections.

Observation tokens are read-only: they see the valid picture and language rows
and themselves, and nothing sees them; they stand at position 0. They therefore
run after the prefix, against its cache, and change the policy by exactly 0.0.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as functional
from torch import Tensor

from vla_edge.policies.checkpoint import MODEL_FILE, Weights
from vla_edge.policies.smolvla.config import SmolVLAConfig
from vla_edge.policies.smolvla.flow import FlowMatching, Prefix

_CLS = ("model.pre_cls_param", "model.suf_cls_param", "model.obs_cls_proj.", "model.act_cls_proj.")
_LM_HEAD = "model.vlm_with_expert.vlm.lm_head.weight"
_EMBEDDING = "model.vlm_with_expert.vlm.model.text_model.embed_tokens.weight"
_DELTA = ("model.delta_", "model.vlm_with_expert.delta_expert.")


def observe(model: FlowMatching, prefix: Prefix) -> Tensor:
    """Projected observation tokens [B, num_cls_prefix, E] of a prefix without its state row.

    The state is left out on purpose: the gate asks whether the scene changed, not the arm.
    """
    batch, tokens = prefix.mask.shape[0], model.pre_cls_param.shape[1]
    rows = model.pre_cls_param.expand(batch, -1, -1)
    sees_itself = torch.eye(tokens, dtype=torch.bool, device=prefix.mask.device).expand(batch, -1, -1)
    visible = torch.cat((prefix.mask[:, None, :].expand(-1, tokens, -1), sees_itself), dim=2)
    positions = torch.zeros(batch, tokens, dtype=torch.int64, device=prefix.mask.device)
    text = model.vlm_with_expert.vlm.model.text_model
    hidden, _ = text(rows, visible, positions, prefix.cache)
    return model.obs_cls_proj(text.norm(hidden))


def similarity(now: Tensor, reference: Tensor, token_now: int = 0, token_reference: int = 1) -> Tensor:
    """Cosine [B] between one projected token now and one of the reference, per sample; both [B, tokens, E]."""
    return functional.cosine_similarity(now[:, token_now].float(), reference[:, token_reference].float(), dim=-1)


def why_no_gate(model: FlowMatching) -> str | None:
    """Why this model's head cannot serve as a gate, in words, or None when it can.

    A head is refused when there is none, when training never marked it, or when its answer does not depend on its
    input.
    """
    if not model.config.use_cls_head:
        return "the policy has no CLS head"
    if not model.config.cls_trained:
        return "the CLS head carries no cls_trained mark: it was never trained"
    width = model.pre_cls_param.shape[-1]
    probes = torch.randn(8, 1, width, generator=torch.Generator().manual_seed(0)).to(model.pre_cls_param)
    with torch.no_grad():
        spread = model.obs_cls_proj(probes).std(dim=0).max().item()
    return None if spread > 0.0 else "the CLS head gives the same answer for every input"


def settle_heads(config: SmolVLAConfig, weights: Weights) -> tuple[SmolVLAConfig, Weights]:
    """Let the file decide whether the policy has a CLS head and a delta expert.

    A head that holds only zeros, as forks write for a disabled one, counts as absent. The configuration returned
    agrees with the tensors returned; every difference from config.json stands in its notes.
    """
    if config.source.get("use_peft"):  # the adapter is merged by now
        config = replace(config, source={**config.source, "use_peft": False})
    if _LM_HEAD not in weights.tensors and _EMBEDDING in weights.tensors:  # tied, and left out: no action reads it
        weights = replace(weights, tensors={**weights.tensors, _LM_HEAD: weights.tensors[_EMBEDDING]})
    cls = {name: tensor for name, tensor in weights.tensors.items() if name.startswith(_CLS)}
    delta = any(name.startswith(_DELTA) for name in weights.tensors)
    notes = [f"{MODEL_FILE}: {name} has no use here and was ignored" for name in weights.ignored]
    holds_cls = any(bool(tensor.any()) for tensor in cls.values())
    if not holds_cls and cls:
        notes.append(f"{MODEL_FILE}: the CLS head holds only zeros and counts as absent")
        weights = replace(
            weights, tensors={name: tensor for name, tensor in weights.tensors.items() if name not in cls}
        )
    if holds_cls != config.use_cls_head and not (config.use_cls_head and not cls):
        notes.append(
            f"use_cls_head is {config.use_cls_head} in config.json and {holds_cls} in {MODEL_FILE}; the file decides"
        )
        config = replace(config, use_cls_head=holds_cls, cls_trained=config.cls_trained and holds_cls)
    if delta and not config.train_delta_expert:
        notes.append(f"{MODEL_FILE} holds a delta expert although train_delta_expert is false; it was loaded")
        config = replace(config, holds_delta=True)
    return replace(config, notes=(*config.notes, *notes)), weights
