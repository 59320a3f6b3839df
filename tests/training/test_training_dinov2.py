# SPDX-License-Identifier: Apache-2.0
"""ACT on a DINOv2 through the training loop: from scratch, resumed bit for bit, and from transformers' weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.training import training_world
from tests.training.test_training_act import FIELDS, bytes_of, config
from tests.training.training_world import World, interrupt_at, one_thread, write_data

from vla_edge.errors import CheckpointError, ConfigError
from vla_edge.policies.act.dinov2 import DINOv2
from vla_edge.policies.act.policy import ACTPolicy
from vla_edge.training.runs import begin, prepare_scratch, resume

one_thread()
DINO = {**FIELDS, "vision_backbone": "dinov2_vits14", "backbone_width": 64}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_world, "SIZE", 28)
        return write_data(tmp_path_factory.mktemp("dinov2") / "data", World(episodes=2, length=5))


def test_a_resumed_run_ends_as_one_that_was_not_interrupted(data: Path, tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    setup = prepare_scratch(config(data, whole), DINO, "act")
    assert any("LeRobot" in note for note in setup.notes)
    before = {name: value.clone() for name, value in setup.policy.model.backbone.named_parameters()}
    begin(setup)

    with pytest.raises(KeyboardInterrupt):
        begin(prepare_scratch(config(data, stopped), DINO, "act"), interrupt_at(3))
    resume(stopped)
    ours, theirs = bytes_of(stopped), bytes_of(whole)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []
    trained = ACTPolicy.from_pretrained(whole / "checkpoints" / "last" / "pretrained_model").model.backbone
    assert all(not torch.equal(value, before[name]) for name, value in trained.named_parameters())


def test_transformers_weights_are_taken_from_a_file_or_a_folder_and_others_refused(data: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    net = DINOv2(64, 12)
    net.draw()
    tensors = {**net.state_dict(), "embeddings.mask_token": torch.zeros(1, 64)}
    save_file(tensors, tmp_path / "model.safetensors")
    torch.save({"cls_token": torch.zeros(1, 1, 64)}, tmp_path / "dinov2_vits14_pretrain.pth")
    for source in (tmp_path / "model.safetensors", tmp_path):
        begun = replace(config(data, tmp_path / "run"), policy=str(source))
        loaded = prepare_scratch(begun, DINO, "act").policy.model.backbone.state_dict()
        assert all(torch.equal(loaded[name], value) for name, value in net.state_dict().items())
    begun = replace(config(data, tmp_path / "run"), policy=str(tmp_path / "dinov2_vits14_pretrain.pth"))
    with pytest.raises(CheckpointError, match="is not there.*give transformers' model.safetensors of dinov2_vits14"):
        prepare_scratch(begun, DINO, "act")


def test_pictures_that_no_patches_fill_are_refused_before_training(data: Path, tmp_path: Path) -> None:
    info = data / "meta" / "info.json"
    text = info.read_text()
    content = json.loads(text)
    content["features"][training_world.CAMERA]["shape"] = [30, 28, 3]
    info.write_text(json.dumps(content))
    try:
        with pytest.raises(ConfigError, match="both sides must be multiples of it: record pictures of 28 × 28"):
            prepare_scratch(config(data, tmp_path / "run"), DINO, "act")
    finally:
        info.write_text(text)
    assert not (tmp_path / "run").exists()
