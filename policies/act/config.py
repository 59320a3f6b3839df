# SPDX-License-Identifier: Apache-2.0
"""ACT's config.json as a frozen dataclass: field names and defaults are LeRobot's (`ACTConfig`, 0.4.4 and 0.6.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vla_edge.errors import ConfigError
from vla_edge.policies.act import dinov2
from vla_edge.policies.act.resnet import DEPTHS, FIRST_WIDTH, SHALLOW
from vla_edge.policies.checkpoint_folder import read_json, write_json
from vla_edge.policies.features import Feature, PolicyConfig, config_from, fields_json

ACTIVATIONS = ("relu", "gelu")
ENVIRONMENT = "observation.environment_state"
_WITHOUT_ARITHMETIC = frozenset(
    (
        *("type", "n_obs_steps", "device", "use_amp", "use_peft", "pretrained_backbone_weights", "push_to_hub"),
        *("repo_id", "private", "tags", "license", "pretrained_path", "pretrained_revision"),
        *("optimizer_lr", "optimizer_weight_decay", "optimizer_lr_backbone"),
    )
)
_NOT_IN_FILE = ("source", "notes")
_SIZES = (
    *("chunk_size", "dim_model", "n_heads", "dim_feedforward", "n_encoder_layers", "n_decoder_layers", "latent_dim"),
    "n_vae_encoder_layers",
)
_MOST_CHUNK = 10_000


@dataclass(frozen=True, slots=True)
class ACTConfig(PolicyConfig):
    """Sizes and switches of an ACT policy.

    vision_backbone: a ResNet's name, or a DINOv2's as torch.hub has it, which LeRobot's ACT does not know.
    backbone_width: channels of a ResNet's first stage, or a DINOv2's width; 0 becomes the one that the name means,
    which a file leaves out and LeRobot knows alone. replace_final_stride_with_dilation: the last stage keeps its
    resolution and widens its view (only ResNets with bottlenecks can). pre_norm: layer norm before each block instead
    of behind it.
    temporal_ensemble_coeff: see ensembling.py; None does without. source: config.json as it was read. notes: what a
    user should know of it. ConfigError: a value that cannot be computed, named.
    """

    input_features: tuple[Feature, ...]
    output_features: tuple[Feature, ...]
    normalization_mapping: Mapping[str, str] = field(
        default_factory=lambda: {"VISUAL": "MEAN_STD", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"}
    )
    chunk_size: int = 100
    n_action_steps: int = 100
    vision_backbone: str = "resnet18"
    backbone_width: int = 0
    replace_final_stride_with_dilation: bool = False
    pre_norm: bool = False
    dim_model: int = 512
    n_heads: int = 8
    dim_feedforward: int = 3200
    feedforward_activation: str = "relu"
    n_encoder_layers: int = 4
    n_decoder_layers: int = 1
    use_vae: bool = True
    latent_dim: int = 32
    n_vae_encoder_layers: int = 4
    temporal_ensemble_coeff: float | None = None
    dropout: float = 0.1
    kl_weight: float = 10.0
    source: Mapping[str, Any] = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if any(item.name == ENVIRONMENT for item in self.input_features):
            raise ConfigError(f"input_features has {ENVIRONMENT}, which no camera or joint gives; train without it")
        self.check_features()
        _check_backbone(self)
        object.__setattr__(self, "backbone_width", self.backbone_width or own_width(self.vision_backbone))
        if self.feedforward_activation not in ACTIVATIONS:
            raise ConfigError(
                f"feedforward_activation is {self.feedforward_activation!r}; ACT runs here with "
                f"{' or '.join(ACTIVATIONS)}"
            )
        for name in _SIZES:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, must be at least 1")
        if self.chunk_size > _MOST_CHUNK:
            raise ConfigError(f"chunk_size is {self.chunk_size}, must be at most {_MOST_CHUNK}")
        if not 1 <= self.n_action_steps <= self.chunk_size:
            raise ConfigError(
                f"n_action_steps is {self.n_action_steps}; it must be 1 to chunk_size, which is {self.chunk_size}"
            )
        if self.temporal_ensemble_coeff is not None and self.n_action_steps != 1:
            raise ConfigError(
                f"n_action_steps is {self.n_action_steps} beside temporal_ensemble_coeff; ensembling plans at every "
                "step, so it must be 1"
            )
        if self.dim_model % 4 or self.dim_model % self.n_heads:
            raise ConfigError(
                f"dim_model is {self.dim_model}; it must be a multiple of 4 and of n_heads ({self.n_heads})"
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is {self.dropout}, must be 0 to below 1")

    @property
    def noised(self) -> bool:
        """No: a chunk is made from an observation alone, and in training the latent draws its own."""
        return False

    @property
    def train_expert_only(self) -> bool:
        """No: every weight trains, and gets a gradient."""
        return False

    @property
    def beyond_lerobot(self) -> str:
        """A DINOv2, or a backbone of another width."""
        if self.vision_backbone in dinov2.SIZES:
            return f"vision_backbone {self.vision_backbone}"
        return "" if self.backbone_width == FIRST_WIDTH else f"backbone_width {self.backbone_width}"

    @property
    def max_state_dim(self) -> int:
        return self.state_dim

    @property
    def max_action_dim(self) -> int:
        """Columns of a chunk: no padding here."""
        return self.action_dim

    @property
    def picture_modes(self) -> tuple[str, ...]:
        return ("MEAN_STD", "MIN_MAX", "IDENTITY")

    @property
    def tokenizer_step(self) -> None:
        """ACT reads no task."""
        return None


def own_width(vision_backbone: str) -> int:
    """The width that a backbone's name means."""
    return dinov2.SIZES[vision_backbone][0] if vision_backbone in dinov2.SIZES else FIRST_WIDTH


def _check_backbone(config: ACTConfig) -> None:
    name, width = config.vision_backbone, config.backbone_width
    if name not in DEPTHS and name not in dinov2.SIZES:
        raise ConfigError(f"vision_backbone is {name!r}; known: {', '.join((*DEPTHS, *dinov2.SIZES))}")
    if config.replace_final_stride_with_dilation and (name in SHALLOW or name in dinov2.SIZES):
        raise ConfigError(
            f"replace_final_stride_with_dilation is true; {name} cannot, use resnet50, 101 or 152, or switch it off"
        )
    if width < 0:
        raise ConfigError(f"backbone_width is {width}, must be at least 1; leave it out for {name}'s own")
    if name not in dinov2.SIZES:
        return
    if width % dinov2.HEAD_WIDTH:
        raise ConfigError(f"backbone_width is {width}; {name} needs a multiple of {dinov2.HEAD_WIDTH}")
    for item in config.cameras:
        height, across = item.shape[1:]
        if height % dinov2.PATCH or across % dinov2.PATCH:
            near = " × ".join(str(max(1, round(side / dinov2.PATCH)) * dinov2.PATCH) for side in (height, across))
            raise ConfigError(
                f"input_features.{item.name}.shape is {list(item.shape)}; {name} sees patches of {dinov2.PATCH} × "
                f"{dinov2.PATCH}, both sides must be multiples of it: record pictures of {near}, or use resnet18"
            )


def read_config(folder: Path) -> ACTConfig:
    """Parse `folder/config.json`. CheckpointError: missing or damaged. ConfigError: a value that is not supported."""
    file = folder / "config.json"
    return config_from_json(read_json(file), str(file))


def config_from_json(content: Mapping[str, Any], where: str) -> ACTConfig:
    """The configuration of a config.json's `content`; `where` is named in errors."""
    dilated = "replace_final_stride_with_dilation"  # whose type is int in LeRobot's own configuration
    if content.get(dilated) in (0, 1):
        content = {**content, dilated: bool(content[dilated])}
    return config_from(ACTConfig, "ACT", content, where, _WITHOUT_ARITHMETIC, _NOT_IN_FILE)


def write_config(folder: Path, config: ACTConfig) -> None:
    """Write `folder/config.json` in LeRobot's form."""
    content = {"type": "act", **config.source, **fields_json(config, _NOT_IN_FILE)}
    if config.backbone_width == own_width(config.vision_backbone):
        del content["backbone_width"]
    write_json(folder / "config.json", content)
