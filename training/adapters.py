# SPDX-License-Identifier: Apache-2.0
"""Low-rank adapters, and what is left frozen, on top of the policy's own freezing rules (`set_trainable`)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from vla_edge.errors import ConfigError
from vla_edge.installation import missing_package
from vla_edge.training.run_config import LoraConfig

EXPERTS = "model.vlm_with_expert."


def trained_parameters(policy: nn.Module) -> dict[str, nn.Parameter]:
    """What the optimiser moves, by name."""
    return {name: parameter for name, parameter in policy.named_parameters() if parameter.requires_grad}


def add_lora(policy: nn.Module, config: LoraConfig) -> None:
    """Put adapters into the layers that match. They train, and of the rest only the projections around the expert.

    ConfigError when peft is missing or nothing matches.
    """
    try:
        from peft import LoraConfig as PeftConfig
        from peft import inject_adapter_in_model
    except ImportError:
        raise ConfigError(f"LoRA: {missing_package('peft', 'train')}; or set --lora-rank 0") from None
    settings = PeftConfig(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=config.targets, bias="none"
    )
    try:
        inject_adapter_in_model(settings, policy)
    except ValueError:
        raise ConfigError(
            f"LoRA targets {config.targets!r} match no layer of the policy that takes adapters; give a regular "
            "expression of whole names, for example --lora-targets '.*lm_expert.*q_proj'"
        ) from None
    for name, parameter in policy.named_parameters():
        small = parameter.requires_grad and not name.startswith(EXPERTS)
        parameter.requires_grad_(small or ".lora_" in name)


def frozen_parts(policy: nn.Module) -> str:
    """Names of the large parts without a trained weight, for error messages."""
    parts: Mapping[str, str] = {
        "the VLM": f"{EXPERTS}vlm.",
        "state_proj": "model.state_proj.",
        "the expert": f"{EXPERTS}lm_expert.",
        "the action projections": "model.action_",
    }
    frozen = [
        label
        for label, prefix in parts.items()
        if not any(p.requires_grad for name, p in policy.named_parameters() if name.startswith(prefix))
    ]
    return ", ".join(frozen) or "nothing"


def count(parameters: Mapping[str, torch.nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters.values())
