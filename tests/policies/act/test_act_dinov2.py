# SPDX-License-Identifier: Apache-2.0
"""Our DINOv2 against transformers' Dinov2Model on weights that both make from the tensors' names, and ACT with it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.policies.act.act_checkpoints import GOLDEN, dinov2_checkpoint

from vla_edge.errors import ConfigError
from vla_edge.policies.act.config import config_from_json, write_config
from vla_edge.policies.act.dinov2 import SIZES, TABLE_SIDE, DINOv2
from vla_edge.policies.act.policy import ACTPolicy

sys.path.insert(0, str(GOLDEN))
from numbers_of_act import DINOV2_SIZES, DINOV2_WIDTH, dinov2_weight, numbers

TOLERANCE = 1e-5
"""Of the largest value: float32 rounding, where the order of sums differs (seen 5e-7)."""
NAMES = ["x".join(map(str, size)) for size in DINOV2_SIZES]


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    with np.load(GOLDEN / "dinov2.npz") as content:
        return dict(content)


@pytest.fixture(scope="module")
def network() -> DINOv2:
    made = DINOv2(DINOV2_WIDTH, 12)
    state = made.state_dict()
    made.load_state_dict({key: torch.from_numpy(dinov2_weight(key, tuple(v.shape))) for key, v in state.items()})
    return made.eval()


def test_tensor_names_and_shapes_are_transformers_but_for_the_mask_of_its_training(
    network: DINOv2, golden: dict[str, Any]
) -> None:
    ours = {f"{key} {list(value.shape)}" for key, value in network.state_dict().items()}
    assert ours < set(golden["keys"].tolist())
    assert set(golden["keys"].tolist()) - ours == {f"embeddings.mask_token [1, {DINOV2_WIDTH}]"}


@pytest.mark.parametrize(("size", "name"), list(zip(DINOV2_SIZES, NAMES)), ids=NAMES)
@torch.no_grad()
def test_placed_patches_and_last_rows_equal_transformers(
    size: tuple[int, int], name: str, network: DINOv2, golden: dict[str, Any]
) -> None:
    picture, every = torch.from_numpy(numbers(name, (1, 3, *size))), DINOV2_SIZES[size]
    rows = network.tokens(picture)
    for ours, theirs in ((network.embeddings(picture), golden[f"{name}.placed"]), (rows, golden[f"{name}.rows"])):
        assert np.abs(ours[0, ::every].numpy() - theirs).max() <= TOLERANCE * np.abs(theirs).max()
    features = network(picture)
    assert features.shape == (1, DINOV2_WIDTH, *network.grid(*size))
    assert torch.equal(features.flatten(2).transpose(1, 2), rows[:, 1:])


def test_the_table_of_places_is_used_as_it_is_at_its_own_size_and_stretched_at_others(network: DINOv2) -> None:
    places = network.embeddings.places
    assert places(TABLE_SIDE, TABLE_SIDE) is network.embeddings.position_embeddings
    assert places(3, 4).shape == (1, 13, DINOV2_WIDTH)
    assert torch.equal(places(3, 4)[:, 0], network.embeddings.position_embeddings[:, 0])


def test_a_saved_policy_is_the_same_policy_and_says_that_lerobot_does_not_open_it(tmp_path: Path) -> None:
    first = ACTPolicy.from_pretrained(dinov2_checkpoint(tmp_path / "act"))
    assert (
        len(first.notes) == 1
        and "dinov2_vits14 is not LeRobot's, whose ACT does not open this checkpoint" in first.notes[0]
    )
    first.save_pretrained(tmp_path / "again")
    second = ACTPolicy.from_pretrained(tmp_path / "again")
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("act", "again")]
    assert configs[0] == configs[1]
    kept = second.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in first.state_dict().items())


def test_the_width_that_the_name_means_is_left_out_of_the_file(tmp_path: Path) -> None:
    content = json.loads((dinov2_checkpoint(tmp_path / "act") / "config.json").read_text())
    assert content["backbone_width"] == 64
    for name, (width, _) in SIZES.items():
        own = config_from_json({**content, "vision_backbone": name, "backbone_width": width}, "here")
        (tmp_path / name).mkdir()
        write_config(tmp_path / name, own)
        written = json.loads((tmp_path / name / "config.json").read_text())
        assert "backbone_width" not in written and config_from_json(written, "here").backbone_width == width


@pytest.mark.parametrize(
    ("size", "changes", "words"),
    [
        ((48, 56), {}, r"shape is \[3, 48, 56\]; dinov2_vits14 sees patches of 14 × 14.*pictures of 42 × 56"),
        ((480, 640), {}, "pictures of 476 × 644, or use resnet18"),
        ((6, 14), {}, "pictures of 14 × 14"),
        ((), {"vision_backbone": "dinov2_vits14_reg"}, "known: resnet18.*dinov2_vits14"),
        ((), {"vision_backbone": "dinov2_vitg14"}, "'dinov2_vitg14'; known"),
        ((), {"vision_backbone": "facebook/dinov2-small"}, "known: resnet18.*dinov2_vits14"),
        ((), {"replace_final_stride_with_dilation": True}, "dinov2_vits14 cannot, use resnet50"),
        ((), {"backbone_width": 100}, "backbone_width is 100; dinov2_vits14 needs a multiple of 64"),
        ((), {"backbone_width": -64}, "must be at least 1"),
    ],
)
def test_what_a_dinov2_cannot_do_is_refused_in_one_line(
    size: tuple[int, ...], changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    folder = dinov2_checkpoint(tmp_path / "act")
    content = json.loads((folder / "config.json").read_text())
    if size:
        content["input_features"]["observation.images.front"]["shape"] = [3, *size]
    (folder / "config.json").write_text(json.dumps(content | changes))
    with pytest.raises(ConfigError, match=words) as caught:
        ACTPolicy.from_pretrained(folder)
    assert "config.json" in str(caught.value) and "\n" not in str(caught.value)
