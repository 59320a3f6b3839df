# SPDX-License-Identifier: Apache-2.0
"""Our DINOv2 against a live transformers on random weights and sizes, from the files that it saves; and what LeRobot
says of an ACT on one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.policies.act.act_checkpoints import checkpoint, dinov2_checkpoint

from vla_edge.policies.act.dinov2 import PATCH, DINOv2

Ask = Callable[..., dict[str, Any]]
TOLERANCE = 1e-5
"""Of the largest value: float32 rounding, where the order of sums differs."""


@pytest.mark.parametrize("seed", range(6))
@torch.no_grad()
def test_the_last_rows_are_transformers(seed: int, lerobot: Ask, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    width, layers = 64 * int(rng.integers(1, 4)), int(rng.integers(1, 13))
    sizes = [(PATCH * int(rng.integers(1, 20)), PATCH * int(rng.integers(1, 20))) for _ in range(3)]
    out, folder = tmp_path / "out.npz", tmp_path / "model"
    lerobot("dinov2", seed=seed, width=width, layers=layers, sizes=sizes, folder=folder, out=out)
    made = DINOv2(width, layers)
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("embeddings.mask_token")
    made.load_state_dict(tensors)
    with np.load(out) as content:
        for number in range(len(sizes)):
            ours, theirs = made(torch.from_numpy(content[f"picture{number}"])), content[f"rows{number}"][0, 1:]
            assert np.abs(ours[0].flatten(1).T.numpy() - theirs).max() <= TOLERANCE * np.abs(theirs).max()


def test_lerobot_opens_a_resnets_act_and_not_a_dinov2s(lerobot: Ask, tmp_path: Path) -> None:
    assert lerobot("opens", folder=checkpoint(tmp_path / "resnet"))["why"] == ""
    assert "backbone_width" in lerobot("opens", folder=dinov2_checkpoint(tmp_path / "dinov2"))["why"]
