# SPDX-License-Identifier: Apache-2.0
"""Golden ACT checkpoints as LeRobot saved them, completed with the weights that their tensors' names make."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from vla_edge.policies.act.config import read_config
from vla_edge.policies.act.network import ACT

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "act"
sys.path.insert(0, str(GOLDEN))
from numbers_of_act import CAMERAS, FOLDERS, dinov2_weight, observations, weight  # noqa: E402

__all__ = ["FOLDERS", "GOLDEN", "checkpoint", "dinov2_checkpoint", "dinov2_observations", "expected", "observations"]
DINOV2_SIDES, NARROW = (28, 42), 64
"""Of the cameras of `dinov2_checkpoint`, and its DINOv2's width."""


def checkpoint(place: Path, name: str = "resnet18", version: str = "061") -> Path:
    """A whole checkpoint folder at `place` (new)."""
    shutil.copytree(GOLDEN / f"folders{version}" / name, place)
    return _with_weights(place, weight)


def dinov2_checkpoint(place: Path) -> Path:
    """The same with a narrow DINOv2 for its ResNet and pictures of `DINOV2_SIDES`, which LeRobot cannot save."""
    shutil.copytree(GOLDEN / "folders061" / "resnet18", place, ignore=shutil.ignore_patterns("actions.npz"))
    content = json.loads((place / "config.json").read_text())
    content |= {"vision_backbone": "dinov2_vits14", "backbone_width": NARROW}
    for camera in CAMERAS:
        content["input_features"][f"observation.images.{camera}"]["shape"] = [3, *DINOV2_SIDES]
    (place / "config.json").write_text(json.dumps(content, indent=4))
    return _with_weights(place, dinov2_weight)


def dinov2_observations() -> list[dict[str, np.ndarray]]:
    """`observations()` with pictures cut to `DINOV2_SIDES`."""
    height, width = DINOV2_SIDES
    return [
        {name: value[:height, :width].copy() if value.ndim == 3 else value for name, value in raw.items()}
        for raw in observations()
    ]


def _with_weights(place: Path, weight_of: Callable[[str, tuple[int, ...]], np.ndarray]) -> Path:
    tensors = {}
    for key, value in ACT(read_config(place)).state_dict().items():
        made = torch.from_numpy(weight_of(f"model.{key}", tuple(value.shape)))
        tensors[f"model.{key}"] = value if key.endswith("pos_enc") else made
    save_file(tensors, place / "model.safetensors")
    return place


def expected(name: str, version: str = "061") -> tuple[np.ndarray, np.ndarray]:
    """LeRobot's chunks [steps, C, joints] and selected actions [steps, joints] for `observations()`, in joint units."""
    with np.load(GOLDEN / f"folders{version}" / name / "actions.npz") as content:
        return content["chunks"], content["actions"]
