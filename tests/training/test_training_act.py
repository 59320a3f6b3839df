# SPDX-License-Identifier: Apache-2.0
"""ACT through the same loop: from scratch and from a checkpoint, resumed bit for bit, LeRobot's folders out of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.training.training_world import CAMERA, World, interrupt_at, one_thread, write_data, write_policy

from vla_edge.errors import CheckpointError, ConfigError
from vla_edge.export.assemble import ExportRequest, export_bundle
from vla_edge.policies.act.new_policy import IMAGENET
from vla_edge.policies.act.policy import ACTPolicy
from vla_edge.policies.act.resnet import ResNet
from vla_edge.training.command import main
from vla_edge.training.run_config import OptimizerConfig, TaskData, TrainConfig
from vla_edge.training.run_files import read_metrics
from vla_edge.training.runs import begin, fine_tune, prepare_scratch, resume

one_thread()
FIELDS = {
    "chunk_size": 4,
    "n_action_steps": 2,
    "dim_model": 32,
    "n_heads": 2,
    "dim_feedforward": 32,
    "latent_dim": 4,
    "n_encoder_layers": 1,
    "n_vae_encoder_layers": 1,
}
STEPS = 4


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("act") / "data", World(episodes=4, length=5))


def config(data: Path, out: Path, **changes: Any) -> TrainConfig:
    return TrainConfig(
        "", str(out), (TaskData("data", str(data)),), steps=STEPS, batch_size=3, save_every=2, log_every=1,
        device="cpu", optimizer=OptimizerConfig(lr=1e-3), **changes,
    )  # fmt: skip


def bytes_of(run: Path) -> dict[str, bytes]:
    folder = run / "checkpoints" / f"{STEPS:06d}"
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name not in ("run.json", "train_config.json")
    }


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was not interrupted."""
    run = tmp_path_factory.mktemp("act") / "whole"
    begin(prepare_scratch(config(data, run), FIELDS, "act"))
    return run


def test_a_resumed_run_ends_as_one_that_was_not_interrupted(data: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "stopped"

    with pytest.raises(KeyboardInterrupt):
        begin(prepare_scratch(config(data, run), FIELDS, "act"), interrupt_at(3))
    resume(run)
    ours, theirs = bytes_of(run), bytes_of(whole)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []


def test_the_checkpoint_is_an_act_of_lerobots_with_imagenets_statistics_of_pictures(whole: Path) -> None:
    folder = whole / "checkpoints" / "last" / "pretrained_model"
    policy = ACTPolicy.from_pretrained(folder)
    np.testing.assert_allclose(policy.settings.pictures[0].low, IMAGENET["mean"])
    content = json.loads((folder / "config.json").read_text())
    assert (content["type"], content["chunk_size"], content["vision_backbone"]) == ("act", 4, "resnet18")
    assert json.loads((folder / "train_config.json").read_text())["policy"]["type"] == "act"
    assert not (folder / "vlm").exists()
    logged = [line for line in read_metrics(whole) if "l1_loss" in line]
    assert len(logged) == STEPS and all(line["kld_loss"] >= 0 for line in logged)


def test_a_checkpoint_is_trained_on_with_its_own_way_of_seeing(data: Path, whole: Path, tmp_path: Path) -> None:
    start = whole / "checkpoints" / "last" / "pretrained_model"
    made = config(data, tmp_path / "run", n_action_steps=1)
    _, outcome = fine_tune(TrainConfig(**{**{n: getattr(made, n) for n in made.__slots__}, "policy": str(start)}))
    policy = ACTPolicy.from_pretrained(outcome.checkpoint)
    assert policy.config.n_action_steps == 1
    np.testing.assert_allclose(policy.settings.pictures[0].high, IMAGENET["std"])


def test_torchvisions_resnet_is_taken_and_another_refused(data: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    tensors = ResNet("resnet18", False).state_dict() | {"fc.weight": torch.zeros(2, 2)}
    save_file(tensors, tmp_path / "resnet18.safetensors")
    torch.save({name: value for name, value in tensors.items() if name != "conv1.weight"}, tmp_path / "other.pth")
    made = config(data, tmp_path / "run")
    values = {name: getattr(made, name) for name in made.__slots__}
    setup = prepare_scratch(TrainConfig(**{**values, "policy": str(tmp_path / "resnet18.safetensors")}), FIELDS, "act")
    given = load_file(tmp_path / "resnet18.safetensors")["conv1.weight"]
    assert torch.equal(setup.policy.model.backbone.conv1.weight, given)
    with pytest.raises(CheckpointError, match=r"other.pth: tensor conv1.weight is not there"):
        prepare_scratch(TrainConfig(**{**values, "policy": str(tmp_path / "other.pth")}), FIELDS, "act")


@pytest.mark.parametrize("changes", [{"kind": "delta"}, {"padded_dims": True}])
def test_what_only_smolvla_has_is_refused_by_its_flag(data: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="SmolVLA|start from a trained policy"):
        prepare_scratch(config(data, tmp_path / "run", **changes), FIELDS, "act")


def test_a_camera_that_the_data_lack_is_an_error_for_a_policy_without_masks(
    whole: Path, tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = whole / "checkpoints" / "last" / "pretrained_model"
    renamed = tmp_path / "renamed"
    ACTPolicy.from_pretrained(start).save_pretrained(renamed)
    for file in (*renamed.glob("*.json"),):
        file.write_text(file.read_text().replace(CAMERA, "observation.images.else"))
    words = ["fine-tune", "--checkpoint", str(renamed), "--dataset", str(data), "--out", str(tmp_path / "run")]
    assert main([*words, "--device", "cpu"]) == 2
    assert "for example --camera else=top" in capsys.readouterr().err


def test_act_and_smolvla_stand_side_by_side_with_their_trials(
    whole: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    act = whole / "checkpoints" / "last" / "pretrained_model"
    smolvla = write_policy(tmp_path / "smolvla", chunk_size=4, n_action_steps=4)
    export_bundle(ExportRequest(act, tmp_path / "act-bundle", threads=1), lambda _: None)
    told = [{"seconds": 4.0, "succeeded": True, "stepped_in": False}] * 2
    told += [{"seconds": 9.0, "succeeded": False, "stepped_in": True}]
    (tmp_path / "trials.json").write_text(json.dumps({"trials": told}))
    words = ["compare", str(act), str(tmp_path / "act-bundle"), str(smolvla), "--dataset", str(data), "--timed", "2"]
    words += ["--markdown", str(tmp_path / "table.md"), "--trials", f"2={tmp_path / 'trials.json'}"]
    assert main(words) == 0
    rows = {
        cells[0]: cells[1:]
        for line in (tmp_path / "table.md").read_text().splitlines()
        if (cells := [cell.strip() for cell in line.strip("|").split("|")])
    }
    assert rows["kind"] == ["checkpoint (torch)", "bundle (ort)", "checkpoint (torch)"]
    assert rows["MAE, chunk, joint_1"][0] == rows["MAE, chunk, joint_1"][1] != rows["MAE, chunk, joint_1"][2]
    assert rows["robot trials: successes / trials"] == ["", "2 / 3", ""]
    assert rows["robot trials: mean time to success (s)"] == ["", "4.0", ""]
    assert rows["robot trials: interventions"] == ["", "1", ""]
    assert main([*words[:-1], "4=x.json"]) == 2
    assert "NUMBER from 1 to 3" in capsys.readouterr().err
