"""Which parameters training moves, decided by the configuration."""

from __future__ import annotations

from vla_edge.policies.smolvla.delta import delta_parameters
from vla_edge.policies.smolvla.flow import FlowMatching


def set_trainable(model: FlowMatching) -> None:
    """Set `requires_grad` everywhere.

    Delta mode: only what `delta_parameters` names. Otherwise as LeRobot: `train_expert_only` freezes the backbone,
    `freeze_vision_encoder` its vision tower, `train_state_proj` decides about the state's projection; `lm_head` and the
    text norm, which the actions do not depend on, and delta and CLS weights stay frozen.
    """
    config, backbone = model.config, model.vlm_with_expert.vlm
    ours = [parameter for _, parameter in delta_parameters(model)]
    if config.train_delta_expert:
        model.requires_grad_(False)
        for parameter in ours:
            parameter.requires_grad_(True)
        return
    model.requires_grad_(True)
    for parameter in ours:
        parameter.requires_grad_(False)
    backbone.requires_grad_(not config.train_expert_only)
    backbone.lm_head.requires_grad_(False)
    backbone.model.text_model.norm.requires_grad_(False)
    if config.freeze_vision_encoder:
        backbone.model.vision_model.requires_grad_(False)
    model.state_proj.requires_grad_(config.train_state_proj)
