# SPDX-License-Identifier: Apache-2.0
"""A new policy on a pretrained backbone: the expert starts random, the backbone never does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vla_edge.errors import CheckpointError, ConfigError
from vla_edge.hub import local_folder
from vla_edge.lerobot_data.reader import Dataset
from vla_edge.policies.act.config import config_from_json as act_config
from vla_edge.policies.act.new_policy import IMAGENET, new_act
from vla_edge.policies.act.policy import ACTPolicy
from vla_edge.policies.checkpoint_folder import given_folder
from vla_edge.policies.features import ACTION, STATE, Feature
from vla_edge.policies.normalization import Statistics
from vla_edge.policies.processing import default_processing
from vla_edge.policies.smolvla.backbone import read_backbone
from vla_edge.policies.smolvla.config import SmolVLAConfig, config_from_json
from vla_edge.policies.smolvla.policy import SmolVLAPolicy

VLM = "model.vlm_with_expert.vlm."
INITIALIZER_RANGE = 0.02
"""Standard deviation of new expert weights (the backbone's own `initializer_range`)."""


def policy_from_scratch(
    vlm: Path, dataset: Dataset, statistics: Statistics, fields: Mapping[str, Any], seed: int
) -> SmolVLAPolicy:
    """A policy for `dataset` on the backbone in `vlm`, with fresh expert and projections.

    fields: values of config.json that differ from SmolVLA's defaults. Errors: CheckpointError (backbone files or
    weights missing), ConfigError.
    """
    files = ("config.json", "tokenizer.json", "tokenizer_config.json")
    folder = given_folder(local_folder(vlm, "model", files=(*files, "*.safetensors")), files)
    loaded = read_backbone_weights(folder)
    config = _config(dataset, fields, str(vlm) if folder != vlm.expanduser() else str(folder.resolve()))
    torch.manual_seed(seed)
    policy = SmolVLAPolicy(config, read_backbone(folder), default_processing(folder, config, statistics))
    for module in policy.model.vlm_with_expert.lm_expert.modules():
        if isinstance(module, nn.Linear):
            module.weight.data.normal_(0.0, INITIALIZER_RANGE)
    own = {name: value for name, value in policy.state_dict().items() if name.startswith(VLM)}
    absent = sorted(set(own) - set(loaded))
    if absent == [f"{VLM}lm_head.weight"]:
        loaded[absent[0]] = loaded[f"{VLM}model.text_model.embed_tokens.weight"]
    elif absent:
        raise CheckpointError(
            f"{folder}: backbone weight {absent[0].removeprefix(VLM)} is missing; training from scratch needs all of "
            "them"
        )
    wrong = [name for name, value in own.items() if loaded[name].shape != value.shape]
    if wrong:
        raise CheckpointError(
            f"{folder}: backbone weight {wrong[0].removeprefix(VLM)} has shape {list(loaded[wrong[0]].shape)}, "
            f"config.json makes it {list(own[wrong[0]].shape)}"
        )
    policy.load_state_dict({name: loaded[name].float() for name in own}, strict=False)
    policy.stored_types = {name: loaded[name].dtype for name in own}
    policy.backbone_folder = folder
    return policy


def act_from_scratch(
    backbone: Path | None, dataset: Dataset, statistics: Statistics, fields: Mapping[str, Any], seed: int
) -> ACTPolicy:
    """A new ACT for `dataset`. backbone: torchvision's ResNet weights, None for random ones. fields: values of
    config.json that differ from LeRobot's defaults. Errors: CheckpointError, ConfigError."""
    inputs, outputs = feature_shapes(dataset)
    content = {
        "type": "act",
        "pretrained_backbone_weights": None,
        "input_features": {item.name: {"type": item.kind, "shape": list(item.shape)} for item in inputs},
        "output_features": {item.name: {"type": item.kind, "shape": list(item.shape)} for item in outputs},
        **fields,
    }
    config = act_config(content, "policy options")
    by_channel = {name: np.array(values, np.float32).reshape(3, 1, 1) for name, values in IMAGENET.items()}
    seen = {**statistics, **{camera.name: by_channel for camera in config.cameras}}
    return new_act(config, default_processing(Path("policy options"), config, seen), backbone, seed)


def read_backbone_weights(folder: Path) -> dict[str, Tensor]:
    """The backbone's own weights (`model.safetensors`, or its shards) under the policy's names.

    CheckpointError when they are missing or damaged: random backbone weights are never used instead.
    """
    index = folder / "model.safetensors.index.json"
    names = (
        sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.is_file() else ["model.safetensors"]
    )
    tensors: dict[str, Tensor] = {}
    for name in names:
        try:
            tensors |= load_file(folder / name)
        except (FileNotFoundError, SafetensorError) as error:
            raise CheckpointError(
                f"{folder / name}: backbone weights cannot be read ({error}); training from scratch needs them, "
                "copy or download the whole SmolVLM2 folder"
            ) from None
    return {f"{VLM}{name}": tensor for name, tensor in tensors.items()}


def _config(dataset: Dataset, fields: Mapping[str, Any], vlm: str) -> SmolVLAConfig:
    inputs, outputs = feature_shapes(dataset)
    shapes = {item.name: {"type": item.kind, "shape": list(item.shape)} for item in (*inputs, *outputs)}
    content = {
        "type": "smolvla",
        "input_features": {item.name: shapes[item.name] for item in inputs},
        "output_features": {item.name: shapes[item.name] for item in outputs},
        "vlm_model_name": vlm,
        "load_vlm_weights": False,  # they are all in the checkpoint, and the backbone's own may move away
        **fields,
    }
    return config_from_json(content, "policy options")


def feature_shapes(dataset: Dataset, cameras: Sequence[str] = ()) -> tuple[tuple[Feature, ...], tuple[Feature, ...]]:
    """Input and output features of a policy made for `dataset`: all its cameras, or the given ones."""
    keys = tuple(cameras) or dataset.camera_keys
    missing = [key for key in keys if key not in dataset.camera_keys]
    if missing:
        raise ConfigError(f"{dataset.root}: no camera {missing[0]}; it has {', '.join(dataset.camera_keys)}")
    visual = tuple(Feature(key, "VISUAL", (3, *dataset.features[key].shape[:2])) for key in keys)
    state = Feature(STATE, "STATE", dataset.features[STATE].shape)
    return (state, *visual), (Feature(ACTION, "ACTION", dataset.features[ACTION].shape),)
