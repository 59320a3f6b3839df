# SPDX-License-Identifier: Apache-2.0
"""A new ACT: weights drawn as LeRobot draws them, the ResNet random or from torchvision's file."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vla_edge.errors import CheckpointError
from vla_edge.policies.act.config import ACTConfig
from vla_edge.policies.act.policy import ACTPolicy
from vla_edge.policies.act.resnet import ResNet
from vla_edge.policies.processing import ProcessorSettings

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
"""Of a picture's channels in 0..1: what LeRobot normalises the pictures of a new ACT by, whatever the data's are."""


def new_act(config: ACTConfig, settings: ProcessorSettings, backbone: Path | None, seed: int) -> ACTPolicy:
    """A policy to train. backbone: a ResNet of torchvision (.pth or .safetensors); None: random, which needs more data.

    CheckpointError: the file cannot be read, or is of another ResNet.
    """
    torch.manual_seed(seed)
    policy = ACTPolicy(config, settings)
    for weight in (*policy.model.encoder.parameters(), *policy.model.decoder.parameters()):
        if weight.ndim > 1:
            nn.init.xavier_uniform_(weight)
    for module in policy.model.backbone.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    if backbone is not None:
        _load_backbone(policy.model.backbone, backbone)
    return policy


def _load_backbone(network: ResNet, file: Path) -> None:
    tensors = _read(file)
    wanted = network.state_dict()
    for name, value in wanted.items():
        if name not in tensors or tensors[name].shape != value.shape:
            found = list(tensors[name].shape) if name in tensors else "not there"
            raise CheckpointError(
                f"{file}: tensor {name} is {found}, config.json makes it {list(value.shape)}; give the weights of that "
                "ResNet"
            )
    network.load_state_dict({name: tensors[name].float() for name in wanted})


def _read(file: Path) -> dict[str, Tensor]:
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        tensors: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
        return tensors
    except (OSError, SafetensorError, RuntimeError, ValueError, EOFError) as error:
        raise CheckpointError(f"{file}: no weights to read ({error}); give torchvision's file of a ResNet") from None
