# SPDX-License-Identifier: Apache-2.0
"""Golden ACT checkpoints as LeRobot saved them, completed with the weights that their tensors' names make."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from vla_edge.policies.act.config import read_config
from vla_edge.policies.act.network import ACT

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "act"
sys.path.insert(0, str(GOLDEN))
from numbers_of_act import FOLDERS, observations, weight  # noqa: E402

__all__ = ["FOLDERS", "GOLDEN", "checkpoint", "expected", "observations"]


def checkpoint(place: Path, name: str = "resnet18", version: str = "061") -> Path:
    """A whole checkpoint folder at `place` (new)."""
    shutil.copytree(GOLDEN / f"folders{version}" / name, place)
    tensors = {}
    for key, value in ACT(read_config(place)).state_dict().items():
        made = torch.from_numpy(weight(f"model.{key}", tuple(value.shape)))
        tensors[f"model.{key}"] = value if key.endswith("pos_enc") else made
    save_file(tensors, place / "model.safetensors")
    return place


def expected(name: str, version: str = "061") -> tuple[np.ndarray, np.ndarray]:
    """LeRobot's chunks [steps, C, joints] and selected actions [steps, joints] for `observations()`, in joint units."""
    with np.load(GOLDEN / f"folders{version}" / name / "actions.npz") as content:
        return content["chunks"], content["actions"]
