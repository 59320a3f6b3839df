# SPDX-License-Identifier: Apache-2.0
"""A policy's config.json as a frozen dataclass.

Field names are LeRobot's (`SmolVLAConfig`, 0.4.4) and, for the CLS head and
the delta expert, those of the method's users. Fields that do not change the
arithmetic (optimiser presets, device, hub) are kept in `source` so that
`save_pretrained` writes them back. A value that cannot be computed is a
ConfigError; a field nobody knows is reported in `notes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from typing import Any

from vla_edge.camera_names import EMPTY_CAMERA
from vla_edge.errors import ConfigError
from vla_edge.policies.checkpoint_folder import read_json, write_json
from vla_edge.policies.features import Feature, PolicyConfig, config_from, fields_json
from vla_edge.policies.smolvla.backbone import TextConfig

_WITHOUT_ARITHMETIC = frozenset(
    (
        *("type", "input_features", "output_features", "normalization_mapping", "n_obs_steps", "use_cache"),
        *("device", "use_amp", "use_peft", "compile_model", "compile_mode", "load_vlm_weights", "rtc_config"),
        *("push_to_hub", "repo_id", "private", "tags", "license", "pretrained_path", "pretrained_revision"),
        *("fine_tune_vision_encoder", "vision_encoder_lr_multiplier", "optimizer_lr", "optimizer_betas"),
        *("optimizer_eps", "optimizer_weight_decay", "optimizer_grad_clip_norm", "scheduler_warmup_steps"),
        *("scheduler_decay_steps", "scheduler_decay_lr"),
    )
)
_NOT_IN_FILE = ("source", "notes", "holds_delta", "distilled")
MOST_CLS_TOKENS = 8
DISTILLED = "distilled.json"
"""The mark of a policy that was distilled to its `num_steps`; a file of its own, because LeRobot refuses a config.json
with fields it does not know."""


@dataclass(frozen=True)
class SmolVLAConfig(PolicyConfig):
    """Everything that decides the arithmetic. Decided when the model is built: assigning a field later raises."""

    input_features: tuple[Feature, ...]
    output_features: tuple[Feature, ...]
    normalization_mapping: Mapping[str, str] = field(
        default_factory=lambda: {"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"}
    )
    chunk_size: int = 50
    n_action_steps: int = 50
    max_state_dim: int = 32
    max_action_dim: int = 32
    resize_imgs_with_padding: tuple[int, int] | None = (512, 512)
    empty_cameras: int = 0
    adapt_to_pi_aloha: bool = False
    use_delta_joint_actions_aloha: bool = False
    tokenizer_max_length: int = 48
    num_steps: int = 10
    vlm_model_name: str = "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"
    add_image_special_tokens: bool = False
    attention_mode: str = "cross_attn"
    prefix_length: int = -1
    pad_language_to: str = "longest"
    num_expert_layers: int = -1
    num_vlm_layers: int = 16
    self_attn_every_n_layers: int = 2
    expert_width_multiplier: float = 0.75
    min_period: float = 4e-3
    max_period: float = 4.0
    use_cls_head: bool = False
    num_cls_prefix: int = 2
    num_cls_suffix: int = 2
    train_delta_expert: bool = False
    vicreg_weight: float = 0.01
    vicreg_lambda: float = 25.0
    vicreg_mu: float = 25.0
    vicreg_nu: float = 1.0
    cls_noise_scale: float = 0.01
    cls_similarity_threshold: float = 0.5
    cls_action_context: int = 5
    delta_target: str = "noise"
    delta_relative_error: float | None = None
    """Of the delta expert on held-out frames: its error divided by that of no correction; None: never measured."""
    cls_trained: bool = False
    holds_delta: bool = False
    distilled: Mapping[str, Any] = field(default_factory=dict)
    freeze_vision_encoder: bool = True
    train_expert_only: bool = True
    train_state_proj: bool = True
    source: Mapping[str, Any] = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _validate(self)

    @property
    def resized_to(self) -> tuple[int, int] | None:
        """(height, width) that every picture is brought to; None: the size it has."""
        size = self.resize_imgs_with_padding
        return None if size is None else (size[1], size[0])

    @property
    def cameras(self) -> tuple[Feature, ...]:
        """The cameras in slot order, without the placeholders that `empty_cameras` adds."""
        empty = {f"{EMPTY_CAMERA}{index}" for index in range(self.empty_cameras)}
        return tuple(item for item in self.input_features if item.kind == "VISUAL" and item.name not in empty)

    @property
    def pictures(self) -> tuple[str, ...]:
        """Keys under which a picture may be given, in slot order: the cameras, and the placeholders, which LeRobot
        treats as cameras where somebody gives them one."""
        listed = [item.name for item in self.input_features if item.kind == "VISUAL"]
        empty = [f"{EMPTY_CAMERA}{index}" for index in range(self.empty_cameras)]
        return (*listed, *(name for name in empty if name not in listed))

    @property
    def picture_modes(self) -> tuple[str, ...]:
        """SmolVLA scales pictures itself."""
        return ("IDENTITY",)

    @property
    def tokenizer_step(self) -> dict[str, Any]:
        """The `tokenizer_processor` of a checkpoint without processor files."""
        return {
            "tokenizer_name": self.vlm_model_name,
            "max_length": self.tokenizer_max_length,
            "padding": self.pad_language_to,
            "padding_side": "right",
        }

    @property
    def noised(self) -> bool:
        """Chunks are made, and losses taken, from noise [B, C, A]."""
        return True

    @property
    def beyond_lerobot(self) -> str:
        """Nothing: LeRobot reads past the fields that it does not know."""
        return ""

    @property
    def has_delta(self) -> bool:
        """Whether the model holds a delta expert."""
        return self.train_delta_expert or self.holds_delta


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """Which expert layer meets which text layer, and how.

    expert_of[i]: index of the expert layer at text layer i, or None.
    cross[i]: that layer cross-attends to the cached prefix; otherwise it self-attends.
    """

    expert_of: tuple[int | None, ...]
    cross: tuple[bool, ...]

    @property
    def layers(self) -> int:
        """Text layers of the policy."""
        return len(self.expert_of)


def plan_layers(config: SmolVLAConfig, text: TextConfig) -> LayerPlan:
    """Pair text and expert layers as LeRobot's `SmolVLMWithExpertModel` does. ConfigError when they do not fit.

    The rhythm `self_attn_every_n_layers` is read twice: from the text layer's
    index (which attention runs) and from the expert layer's own index (which
    shape its k_proj and v_proj have). Where the two disagree no checkpoint can run.
    """
    layers = config.num_vlm_layers if 0 < config.num_vlm_layers < text.layers else text.layers
    experts = config.num_expert_layers if config.num_expert_layers > 0 else layers
    if experts > layers or layers % experts:
        raise ConfigError(
            f"num_expert_layers is {experts}, must divide the {layers} text layers (num_vlm_layers); change one of them"
        )
    every = config.self_attn_every_n_layers
    stride = layers // experts
    expert_of = tuple(index // stride if index % stride == 0 else None for index in range(layers))
    cross = tuple(_crosses(config.attention_mode, every, index) for index in range(layers))
    for index, expert in enumerate(expert_of):
        if expert is not None and cross[index] != _crosses(config.attention_mode, every, expert):
            raise ConfigError(
                f"num_expert_layers {experts} with self_attn_every_n_layers {every} pairs expert layer {expert} with "
                "text layer "
                f"{index}, whose attention is of the other kind; LeRobot cannot run it either, change one of them"
            )
    return LayerPlan(expert_of, cross)


def expert_crosses(config: SmolVLAConfig, expert_layer: int) -> bool:
    """Whether this expert layer's k_proj and v_proj read cached keys and values (width kv_heads·head_dim)."""
    return _crosses(config.attention_mode, config.self_attn_every_n_layers, expert_layer)


def _crosses(attention_mode: str, every: int, index: int) -> bool:
    return "cross" in attention_mode and not (every > 0 and index % every == 0)


def read_config(folder: Path) -> SmolVLAConfig:
    """Parse `folder/config.json`. CheckpointError: missing, damaged, unknown policy type. ConfigError: unsupported
    value, or other flow steps than the policy was distilled to."""
    file, mark = folder / "config.json", folder / DISTILLED
    config = config_from_json(read_json(file), str(file))
    if not mark.is_file():
        return config
    distilled = read_json(mark)
    if distilled.get("flow_steps") != config.num_steps:
        raise ConfigError(
            f"{file}: num_steps is {config.num_steps}, the policy was distilled to {distilled.get('flow_steps')} "
            f"({DISTILLED}); set it back, or take the policy it was made of"
        )
    return replace(config, distilled=distilled)


def config_from_json(content: Mapping[str, Any], where: str) -> SmolVLAConfig:
    """The configuration of a config.json's `content`; `where` is named in errors."""
    if content.get("use_cache", True) is not True:
        raise ConfigError(
            f"{where}: use_cache is false, supported is true; LeRobot cannot sample without its cache either"
        )
    return config_from(SmolVLAConfig, "SmolVLA", content, where, _WITHOUT_ARITHMETIC, _NOT_IN_FILE)


def config_to_json(config: SmolVLAConfig) -> dict[str, Any]:
    """The content of config.json in LeRobot's form. The CLS and delta fields appear only where they are used, so that
    LeRobot can read a policy that has neither."""
    content = {"type": "smolvla", **config.source}
    extended = config.use_cls_head or config.train_delta_expert
    for name, value in fields_json(config, _NOT_IN_FILE).items():
        ours = any(word in name for word in ("cls", "vicreg", "delta")) and name != "use_delta_joint_actions_aloha"
        if extended or not ours or name in content:
            content[name] = value
    return content


def write_config(folder: Path, config: SmolVLAConfig) -> None:
    """Write `folder/config.json`, and beside it the mark of a distilled policy."""
    write_json(folder / "config.json", config_to_json(config))
    if config.distilled:
        write_json(folder / DISTILLED, dict(config.distilled))


_MOST = {
    "chunk_size": 10_000,
    "num_steps": 256,
    "prefix_length": 8192,
    "max_state_dim": 4096,
    "max_action_dim": 4096,
    "empty_cameras": 32,
    "tokenizer_max_length": 8192,
    "expert_width_multiplier": 16.0,
    "max_period": 1e6,
}
"""Far above anything trained; beyond it tables and masks fill the memory before a message could be written."""


def _validate(config: SmolVLAConfig) -> None:
    def require(holds: bool, name: str, limit: str) -> None:
        if not holds:
            raise ConfigError(f"{name} is {getattr(config, name)!r}, must be {limit}")

    for name, most in _MOST.items():
        require(getattr(config, name) <= most, name, f"at most {most}")
    config.check_features()
    require(config.chunk_size >= 1, "chunk_size", "at least 1")
    require(1 <= config.n_action_steps <= config.chunk_size, "n_action_steps", f"1 to chunk_size ({config.chunk_size})")
    require(
        config.max_state_dim >= config.state_dim, "max_state_dim", f"at least the state's {config.state_dim} dimensions"
    )
    require(
        config.max_action_dim >= config.action_dim,
        "max_action_dim",
        f"at least the action's {config.action_dim} dimensions",
    )
    size = config.resize_imgs_with_padding
    require(size is None or min(size) > 0, "resize_imgs_with_padding", "[width, height] in pixels or null")
    require(config.empty_cameras >= 0, "empty_cameras", "0 or more")
    require(not config.use_delta_joint_actions_aloha, "use_delta_joint_actions_aloha", "false: LeRobot never ported it")
    require(
        not config.adapt_to_pi_aloha or (config.state_dim >= 14 and config.action_dim >= 14),
        "adapt_to_pi_aloha",
        "false unless state and action have the 14 joints of an Aloha",
    )
    require(config.tokenizer_max_length >= 1, "tokenizer_max_length", "at least 1")
    require(config.num_steps >= 1, "num_steps", "at least 1")
    require(config.attention_mode in ("cross_attn", "self_attn"), "attention_mode", "'cross_attn' or 'self_attn'")
    require(config.pad_language_to in ("longest", "max_length"), "pad_language_to", "'longest' or 'max_length'")
    require(config.expert_width_multiplier > 0, "expert_width_multiplier", "positive")
    require(0 < config.min_period < config.max_period, "min_period", f"between 0 and max_period ({config.max_period})")
    require(2 <= config.num_cls_prefix <= MOST_CLS_TOKENS, "num_cls_prefix", f"2 to {MOST_CLS_TOKENS}")
    like = f"num_cls_prefix ({config.num_cls_prefix}): the loss aligns equal tokens; set both alike"
    require(config.num_cls_suffix == config.num_cls_prefix, "num_cls_suffix", like)
    for name in ("vicreg_weight", "vicreg_lambda", "vicreg_mu", "vicreg_nu", "cls_noise_scale"):
        require(0 <= getattr(config, name) < inf, name, "0 or more")
    require(-1 <= config.cls_similarity_threshold <= 1, "cls_similarity_threshold", "-1 to 1: it is a cosine")
    require(config.cls_action_context >= 1, "cls_action_context", "at least 1")
    require(config.delta_target in ("noise", "stale"), "delta_target", "'noise' or 'stale'")
