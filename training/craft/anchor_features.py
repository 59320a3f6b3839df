# SPDX-License-Identifier: Apache-2.0
"""What CRaFT holds on to in a SmolVLA: hidden states of what trains, and the velocity.

`hidden`: the outputs of the expert's last two layers, or others that are asked
for, over the action tokens (mean and last token) at a stored noisy chunk and
time, and the state token's hidden state. `velocity`: the predicted velocity over real dimensions. `vlm`: vision
tokens mean-pooled and the last valid text token; they move only when the VLM
trains or carries adapters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vla_edge.errors import ConfigError, TrainingError
from vla_edge.policies.smolvla.flow import Inputs, Prefix
from vla_edge.policies.smolvla.policy import SmolVLAPolicy
from vla_edge.training.adapters import frozen_parts
from vla_edge.training.run_config import GROUPS, LAYERS

POOLING = ("mean", "last")


@dataclass(frozen=True)
class AnchorInputs:
    """The network's inputs, and the noisy chunk x_t float32 [B, C, A] at times float32 [B]."""

    inputs: Inputs
    x_t: Tensor
    time: Tensor


def feature_names(groups: Sequence[str], layers: Sequence[int] = LAYERS) -> tuple[str, ...]:
    """The features of some groups, of the expert's `layers` (−1: the last). ConfigError lists the groups there are."""
    unknown = [group for group in groups if group not in GROUPS]
    if unknown or not groups:
        raise ConfigError(f"anchor features {list(groups)}: choose from {', '.join(GROUPS)}")
    if not layers or any(layer >= 0 for layer in layers) or len(set(layers)) != len(layers):
        raise ConfigError(f"anchor layers {list(layers)}: count from the end, each once, for example -2 -1")
    hidden = [f"expert.{layer}.{pool}" for layer in layers for pool in POOLING]
    return tuple(name for group in groups for name in (*(hidden if group == "hidden" else ()), *GROUPS[group]))


def layers_of(names: Sequence[str]) -> tuple[int, ...]:
    """The expert's layers that some features are of."""
    return tuple(dict.fromkeys(int(name.split(".")[1]) for name in names if name.startswith("expert.")))


def check_layers(expert_layers: int, wanted: Sequence[int]) -> None:
    """ConfigError for a layer that an expert of so many does not have."""
    for layer in (layer for layer in wanted if -layer > expert_layers):
        raise ConfigError(
            f"the expert has {expert_layers} layers, the anchors need layer {layer}; choose others with --layers "
            "(--anchor-layers in stages), or anchor the velocity only"
        )


def features_of(policy: SmolVLAPolicy, anchors: AnchorInputs, names: Sequence[str]) -> dict[str, Tensor]:
    """Each feature float32 [B, width] (velocity [B, C, real dimensions]), with gradients where weights train."""
    model = policy.model
    prefix = model.prefix_of(anchors.inputs)
    layers = layers_of(names)
    with _layer_outputs(model.vlm_with_expert.lm_expert, layers) as outputs:
        velocity = model.denoise_step(prefix, anchors.x_t, anchors.time)
    found: dict[str, Tensor] = {"velocity": velocity[:, :, : policy.config.action_dim], "state": prefix.hidden[:, -1]}
    for layer in layers:
        found[f"expert.{layer}.mean"] = outputs[layer].mean(1)
        found[f"expert.{layer}.last"] = outputs[layer][:, -1]
    if any(name in GROUPS["vlm"] for name in names):
        found |= _vlm_features(prefix, anchors.inputs)
    return {name: found[name].float() for name in names}


def check_path(features: Mapping[str, Tensor], policy: SmolVLAPolicy) -> None:
    """Every feature depends on a trained weight; TrainingError names the feature and the frozen parts otherwise.

    Gradients are really taken: rows of one tensor share its graph, and only the numbers tell which of them can move.
    """
    weights = [weight for weight in policy.parameters() if weight.requires_grad]
    for name, value in features.items():
        found = (
            torch.autograd.grad(value.square().sum(), weights, retain_graph=True, allow_unused=True)
            if value.requires_grad
            else ()
        )
        if not any(gradient is not None and bool(gradient.any()) for gradient in found):
            raise TrainingError(
                f"anchor feature {name} cannot move: frozen are {frozen_parts(policy)}; "
                "build the anchors without its group (--features) or train that part"
            )


def _vlm_features(prefix: Prefix, inputs: Inputs) -> dict[str, Tensor]:
    """Rows in front of the language are pictures (and their special tokens); the state's row is the last."""
    language = inputs.token_mask.shape[1]
    hidden, mask = prefix.hidden[:, :-1], prefix.mask[:, :-1]
    pictures, shown = hidden[:, :-language], mask[:, :-language, None].to(hidden.dtype)
    last = inputs.token_mask.long().cumsum(1).argmax(1)
    words = hidden[:, -language:]
    return {
        "vision": (pictures * shown).sum(1) / shown.sum(1).clamp(min=1),
        "language": words[torch.arange(len(words), device=words.device), last],
    }


@contextmanager
def _layer_outputs(expert: nn.Module, wanted_layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Collect each wanted layer's output: it is what the next norm reads."""
    layers = list(expert.layers)  # type: ignore[arg-type]
    readers = [layer.input_layernorm for layer in layers[1:]] + [expert.norm]
    check_layers(len(readers), wanted_layers)
    outputs: dict[int, Tensor] = {}
    hooks = []
    for wanted in wanted_layers:

        def keep(_: nn.Module, arguments: tuple[Tensor, ...], number: int = wanted) -> None:
            outputs[number] = arguments[0]

        hooks.append(readers[wanted].register_forward_pre_hook(keep))
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()
