# SPDX-License-Identifier: Apache-2.0
"""The vision-language backbone's numbers.

Missing fields of the backbone's config.json take the defaults of transformers'
LlamaConfig and SmolVLMVisionConfig, because published configs rely on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_edge.errors import CheckpointError, ConfigError
from vla_edge.fields import take, take_positive
from vla_edge.policies.checkpoint_folder import read_json


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """SigLIP tower. `image_size` in pixels gives the size of the position table, not of the pictures."""

    hidden_size: int
    layers: int
    heads: int
    mlp_size: int
    patch_size: int
    image_size: int
    layer_norm_eps: float


@dataclass(frozen=True, slots=True)
class TextConfig:
    """Llama-style text model. `layers` counts the backbone's own layers; a policy may keep fewer."""

    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_size: int
    rms_norm_eps: float


@dataclass(frozen=True, slots=True)
class BackboneConfig:
    """Vision tower, text model and the pixel-shuffle factor between them."""

    vision: VisionConfig
    text: TextConfig
    scale_factor: int


def read_backbone(folder: Path) -> BackboneConfig:
    """Parse `folder/config.json`. CheckpointError: unreadable. ConfigError: a value this code does not compute."""
    file = folder / "config.json"
    content = read_json(file)
    if content.get("model_type", "smolvlm") not in ("smolvlm", "idefics3"):
        raise ConfigError(
            f"{file}: model_type is {content['model_type']!r}, supported is 'smolvlm'; choose another backbone"
        )
    return backbone_from_json(content, file)


def backbone_from_json(content: Mapping[str, Any], file: Path) -> BackboneConfig:
    """The backbone of a config.json's `content`; `file` is named in errors."""
    text, vision = content.get("text_config"), content.get("vision_config")
    if not isinstance(text, dict) or not isinstance(vision, dict):
        raise CheckpointError(f"{file}: needs text_config and vision_config; give the config of a SmolVLM2 model")
    for where, part, key, allowed in (
        ("text_config", text, "model_type", ("llama",)),
        ("text_config", text, "hidden_act", ("silu",)),
        ("text_config", text, "attention_bias", (False,)),
        ("text_config", text, "mlp_bias", (False,)),
        ("text_config", text, "qk_layer_norms", (False,)),
        ("text_config", text, "rope_interleaved", (False,)),
        ("vision_config", vision, "hidden_act", ("gelu_pytorch_tanh",)),
        ("vision_config", vision, "num_channels", (3,)),
    ):
        if part.get(key, allowed[0]) not in allowed:
            raise ConfigError(
                f"{file}: {where}.{key} is {part[key]!r}, supported is {allowed[0]!r}; this backbone cannot be run"
            )
    hidden, heads = take_positive(text, "hidden_size", 4096, file), take_positive(text, "num_attention_heads", 32, file)
    backbone = BackboneConfig(
        vision=VisionConfig(
            hidden_size=take_positive(vision, "hidden_size", 1152, file),
            layers=take_positive(vision, "num_hidden_layers", 12, file),
            heads=take_positive(vision, "num_attention_heads", 16, file),
            mlp_size=take_positive(vision, "intermediate_size", 3072, file),
            patch_size=take_positive(vision, "patch_size", 32, file),
            image_size=take_positive(vision, "image_size", 224, file),
            layer_norm_eps=take(vision, "layer_norm_eps", 1e-6, file),
        ),
        text=TextConfig(
            vocab_size=take_positive(text, "vocab_size", 32000, file),
            hidden_size=hidden,
            layers=take_positive(text, "num_hidden_layers", 32, file),
            heads=heads,
            kv_heads=take_positive(text, "num_key_value_heads", heads, file),
            head_dim=take_positive(text, "head_dim", hidden // heads, file),
            mlp_size=take_positive(text, "intermediate_size", 11008, file),
            rms_norm_eps=take(text, "rms_norm_eps", 1e-6, file),
        ),
        scale_factor=take_positive(content, "scale_factor", 2, file),
    )
    if (
        backbone.text.heads % backbone.text.kv_heads
        or backbone.text.head_dim % 2
        or backbone.vision.hidden_size % backbone.vision.heads
    ):
        raise ConfigError(
            f"{file}: heads do not divide evenly (text {heads} by {backbone.text.kv_heads}, vision "
            f"{backbone.vision.hidden_size} by {backbone.vision.heads}); give the config of a SmolVLM2 model"
        )
    return backbone
