# SPDX-License-Identifier: Apache-2.0
"""A new ACT: weights drawn as LeRobot draws them, its backbone's random or from a file of pretrained ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vla_edge.errors import CheckpointError
from vla_edge.hub import local_folder
from vla_edge.policies.act.config import ACTConfig, config_from_json
from vla_edge.policies.act.dinov2 import DINOv2
from vla_edge.policies.act.policy import ACTPolicy
from vla_edge.policies.checkpoint import MODEL_FILE
from vla_edge.policies.families import Beginning
from vla_edge.policies.processing import ProcessorSettings, default_processing

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
"""Of a picture's channels in 0..1: what LeRobot normalises the pictures of a new ACT by, whatever the data's are."""


def from_scratch(beginning: Beginning) -> ACTPolicy:
    """A new ACT, its pictures normalised by ImageNet's statistics."""
    content = {"type": "act", "pretrained_backbone_weights": None, **beginning.features, **beginning.fields}
    config = config_from_json(content, "policy options")
    by_channel = {name: np.array(values, np.float32).reshape(3, 1, 1) for name, values in IMAGENET.items()}
    seen = {**beginning.statistics, **{camera.name: by_channel for camera in config.cameras}}
    settings = default_processing(Path("policy options"), config, seen)
    return new_act(config, settings, beginning.backbone, beginning.seed)


def new_act(config: ACTConfig, settings: ProcessorSettings, backbone: str, seed: int) -> ACTPolicy:
    """A policy to train. backbone: see `Beginning`. CheckpointError: it cannot be read, or is another network's."""
    torch.manual_seed(seed)
    policy = ACTPolicy(config, settings)
    for weight in (*policy.model.encoder.parameters(), *policy.model.decoder.parameters()):
        if weight.ndim > 1:
            nn.init.xavier_uniform_(weight)
    policy.model.backbone.draw()
    if backbone:
        _load_backbone(policy, backbone)
    return policy


def _load_backbone(policy: ACTPolicy, source: str) -> None:
    network, name = policy.model.backbone, policy.config.vision_backbone
    file = local_folder(source, "model", files=(MODEL_FILE,))
    file = file / MODEL_FILE if file.is_dir() else file
    origin = "transformers' model.safetensors" if isinstance(network, DINOv2) else "torchvision's file"
    advice = f"give {origin} of {name}"
    tensors = _read(file, advice)
    wanted = network.state_dict()
    for key, value in wanted.items():
        if key not in tensors or tensors[key].shape != value.shape:
            found = list(tensors[key].shape) if key in tensors else "not there"
            raise CheckpointError(
                f"{file}: tensor {key} is {found}, config.json makes it {list(value.shape)}; {advice}"
            )
    network.load_state_dict({key: tensors[key].float() for key in wanted})


def _read(file: Path, advice: str) -> dict[str, Tensor]:
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        tensors: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
        return tensors
    except (OSError, SafetensorError, RuntimeError, ValueError, EOFError) as error:
        raise CheckpointError(f"{file}: no weights to read ({error}); {advice}") from None
