# SPDX-License-Identifier: Apache-2.0
"""ACT checkpoints as LeRobot 0.4.4 and 0.6.1 save them: read strictly, run from raw pictures, saved again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file
from tests.policies.act.act_checkpoints import FOLDERS, checkpoint, expected, observations

from vla_edge.errors import CheckpointError, ConfigError, ObservationError
from vla_edge.policies.act.policy import ACTPolicy
from vla_edge.policies.families import families, load_policy

TOLERANCE = 1e-5
"""Of the largest action: float32 rounding, where the order of sums differs."""


def near(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= TOLERANCE * np.abs(theirs).max()


@pytest.mark.parametrize("version", ("044", "061"))
@pytest.mark.parametrize("name", FOLDERS)
def test_chunks_and_selected_actions_from_raw_pictures_equal_lerobots(name: str, version: str, tmp_path: Path) -> None:
    policy = load_policy(checkpoint(tmp_path / "act", name, version))
    assert isinstance(policy, ACTPolicy) and not policy.notes
    chunks, actions = expected(name, version)
    for raw, chunk, action in zip(observations(), chunks, actions):
        batch = policy.preprocess(raw)
        near(policy.postprocess(policy.predict_action_chunk(batch))[0].numpy(), chunk)
        near(policy.postprocess(policy.select_action(batch))[0].numpy(), action)


def test_statistics_that_lie_in_the_model_file_are_read_for_pictures_too(tmp_path: Path) -> None:
    """LeRobot before 0.4 kept them as buffers."""
    folder = checkpoint(tmp_path / "act")
    statistics = load_file(folder / "policy_preprocessor_step_3_normalizer_processor.safetensors")
    tensors = load_torch(folder / "model.safetensors")
    for name, value in statistics.items():
        feature, _, statistic = name.rpartition(".")
        owners = ("normalize_targets", "unnormalize_outputs") if feature == "action" else ("normalize_inputs",)
        for owner in owners:
            tensors[f"{owner}.buffer_{feature.replace('.', '_')}.{statistic}"] = torch.from_numpy(value.copy())
    save_file(tensors, folder / "model.safetensors")
    for file in folder.glob("policy_*"):
        file.unlink()
    policy = ACTPolicy.from_pretrained(folder)
    raw, chunks = observations()[0], expected("resnet18")[0]
    near(policy.postprocess(policy.predict_action_chunk(policy.preprocess(raw)))[0].numpy(), chunks[0])


def test_a_saved_policy_is_the_same_policy(tmp_path: Path) -> None:
    first = ACTPolicy.from_pretrained(checkpoint(tmp_path / "act"))
    first.save_pretrained(tmp_path / "again")
    second = ACTPolicy.from_pretrained(tmp_path / "again")
    raw = observations()[0]
    chunks = [policy.predict_action_chunk(policy.preprocess(raw)) for policy in (first, second)]
    assert torch.equal(*chunks)
    ours, theirs = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("again", "act"))
    assert ours == theirs


def change(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content.update(fields)


@pytest.mark.parametrize(
    ("edit", "error", "words"),
    [
        (
            lambda c: c["input_features"].update({"observation.environment_state": {"type": "ENV", "shape": [4]}}),
            ConfigError,
            "environment_state",
        ),
        (lambda c: c["input_features"].pop("observation.state"), ConfigError, "must hold observation.state"),
        (change(n_obs_steps=2), ConfigError, "n_obs_steps is 2"),
        (change(vision_backbone="vit"), ConfigError, "vision_backbone is 'vit'"),
        (change(feedforward_activation="glu"), ConfigError, "relu or gelu"),
        (change(chunk_size="long"), ConfigError, "chunk_size"),
        (change(temporal_ensemble_coeff=0.01), ConfigError, "must be 1"),
        (change(dim_model=128), CheckpointError, "has shape"),
        (change(use_vae=False), CheckpointError, "is not part of this policy"),
        (change(n_encoder_layers=3), CheckpointError, "is missing"),
        (change(type="diffusion"), CheckpointError, "known are act and smolvla"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(
    edit: Callable[[dict[str, Any]], None], error: type[Exception], words: str, tmp_path: Path
) -> None:
    folder = checkpoint(tmp_path / "act")
    content = json.loads((folder / "config.json").read_text())
    edit(content)
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(error, match=words) as caught:
        load_policy(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_every_camera_and_the_state_are_needed(tmp_path: Path) -> None:
    policy = ACTPolicy.from_pretrained(checkpoint(tmp_path / "act"))
    for name in ("observation.images.wrist", "observation.state"):
        raw = {key: value for key, value in observations()[0].items() if key != name}
        with pytest.raises(ObservationError, match=name):
            policy.preprocess(raw)


def test_families_are_the_folders_that_hold_a_policy() -> None:
    assert families() == ("act", "smolvla")


def test_a_backbone_folder_for_act_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="leave --vlm out"):
        load_policy(checkpoint(tmp_path / "act"), vlm=tmp_path)
