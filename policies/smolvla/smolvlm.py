# SPDX-License-Identifier: Apache-2.0
"""The backbone and its experts as one tree of modules, named as in the checkpoint."""

from __future__ import annotations

from torch import Tensor, nn

from vla_edge.policies.smolvla.backbone import BackboneConfig
from vla_edge.policies.smolvla.config import SmolVLAConfig, plan_layers
from vla_edge.policies.smolvla.expert import Expert
from vla_edge.policies.smolvla.text import TextModel
from vla_edge.policies.smolvla.vision import Connector, VisionModel, tokens_per_image


class SmolVLMModel(nn.Module):
    """Vision tower, connector and the kept text layers."""

    def __init__(self, backbone: BackboneConfig, layers: int) -> None:
        super().__init__()
        self.vision_model = VisionModel(backbone.vision)
        self.connector = Connector(backbone)
        self.text_model = TextModel(backbone.text, layers)


class SmolVLM(nn.Module):
    """The backbone as checkpoints hold it. `lm_head` is stored but never read by a policy."""

    def __init__(self, backbone: BackboneConfig, layers: int) -> None:
        super().__init__()
        self.model = SmolVLMModel(backbone, layers)
        self.lm_head = nn.Linear(backbone.text.hidden_size, backbone.text.vocab_size, bias=False)


class SmolVLMWithExpert(nn.Module):
    """Backbone, action expert and, when the policy has one, its twin the delta expert."""

    def __init__(self, config: SmolVLAConfig, backbone: BackboneConfig) -> None:
        super().__init__()
        self.backbone = backbone
        self.plan = plan_layers(config, backbone.text)
        self.vlm = SmolVLM(backbone, self.plan.layers)
        self.lm_expert = Expert(config, backbone.text, self.plan)
        if config.has_delta:
            self.delta_expert = Expert(config, backbone.text, self.plan)

    def embed_image(self, pixels: Tensor) -> Tensor:
        """[B, 3, h, w] in −1..1 → unscaled tokens [B, tokens, H]. ConfigError for a size that pixel shuffle cannot
        cut."""
        tokens_per_image(self.backbone, pixels.shape[2], pixels.shape[3])
        return self.vlm.model.connector(self.vlm.model.vision_model(pixels))

    def embed_tokens(self, token_ids: Tensor) -> Tensor:
        """int64 [B, T] → unscaled embeddings [B, T, H]."""
        return self.vlm.model.text_model.embed_tokens(token_ids)
