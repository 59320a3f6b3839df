# SPDX-License-Identifier: Apache-2.0
"""Folders that we save, opened by LeRobot."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.random_policy import RandomPolicy, write_random_policy
from tests.training.training_world import World, write_data

from vla_edge.policies.act.policy import ACTPolicy
from vla_edge.policies.features import STATE
from vla_edge.policies.smolvla.policy import SmolVLAPolicy
from vla_edge.training.command import main as train_command

Ask = Callable[..., dict[str, Any]]


@pytest.mark.parametrize("backbone", ["in the folder", "elsewhere on this machine"])
@pytest.mark.parametrize("tokenizer", ["PreTrainedTokenizerFast", "GPT2Tokenizer"])
def test_a_saved_policy_opens_in_lerobot_and_plans_the_same(
    backbone: str, tokenizer: str, lerobot: Ask, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    small = {"chunk_size": 8, "n_action_steps": 8, "num_steps": 2}
    write_random_policy(tmp_path / "made", RandomPolicy(dtype="bfloat16", cameras=("front",), config=small))
    details = tmp_path / "made" / "vlm" / "tokenizer_config.json"
    details.write_text(json.dumps({**json.loads(details.read_text()), "tokenizer_class": tokenizer}))
    if backbone != "in the folder":
        (tmp_path / "made" / "vlm").rename(tmp_path / "backbone")
        for file in (tmp_path / "made").glob("*.json"):
            file.write_text(file.read_text().replace('"vlm"', json.dumps(str(tmp_path / "backbone"))))
    SmolVLAPolicy.from_pretrained(tmp_path / "made").save_pretrained(tmp_path / "saved")

    policy = SmolVLAPolicy.from_pretrained(tmp_path / "saved")
    rng = np.random.default_rng(4)
    seen: dict[str, Any] = {STATE: rng.normal(0, 20, 6).astype(np.float32), "task": "Put the pen into the cup"}
    seen["observation.images.front"] = rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)
    noise = torch.randn(1, 8, 32, generator=torch.Generator().manual_seed(2))
    given: dict[str, Any] = {"image/observation.images.front": seen["observation.images.front"], "state": seen[STATE]}
    np.savez(tmp_path / "seen.npz", **given, task=seen["task"], noise=noise.numpy())
    lerobot("chunk", folder=tmp_path / "saved", inputs=tmp_path / "seen.npz", out=tmp_path / "chunk.npz")
    actions = policy.predict_action_chunk(policy.preprocess(seen), noise)
    assert isinstance(actions, torch.Tensor)
    with np.load(tmp_path / "chunk.npz") as content:
        theirs = content["actions"]
    assert np.abs(policy.postprocess(actions).numpy() - theirs).max() <= 1e-5 * np.abs(theirs).max()


def test_an_act_that_scratch_made_opens_in_lerobot_and_plans_the_same(lerobot: Ask, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    data = write_data(tmp_path / "data", World())
    small = {"dim_model": 32, "n_heads": 2, "dim_feedforward": 32, "n_encoder_layers": 1, "n_vae_encoder_layers": 1}
    (tmp_path / "small.json").write_text(json.dumps(small | {"chunk_size": 8, "n_action_steps": 8}))
    words = ["--family", "act", "--dataset", data, "--policy-config", tmp_path / "small.json", "--steps", "1"]
    run = [*words, "--batch-size", "2", "--device", "cpu", "--out", tmp_path / "run"]
    assert train_command(["scratch", *map(str, run)]) == 0
    saved = (tmp_path / "run" / "checkpoints" / "last" / "pretrained_model").resolve()
    policy, rng = ACTPolicy.from_pretrained(saved), np.random.default_rng(4)
    seen: dict[str, Any] = {STATE: rng.normal(0, 1, policy.config.state_dim).astype(np.float32)}
    seen |= {
        camera.name: rng.integers(0, 256, (camera.height, camera.width, 3), dtype=np.uint8)
        for camera in policy.settings.cameras
    }
    given = {f"image/{name}": picture for name, picture in seen.items() if name != STATE}
    np.savez(tmp_path / "seen.npz", **given, state=seen[STATE], task="")
    lerobot("chunk", folder=saved, inputs=tmp_path / "seen.npz", out=tmp_path / "chunk.npz")
    actions = policy.predict_action_chunk(policy.preprocess(seen))
    with np.load(tmp_path / "chunk.npz") as content:
        theirs = content["actions"]
    assert np.abs(policy.postprocess(actions).numpy() - theirs).max() <= 1e-5 * np.abs(theirs).max()


def test_a_policy_that_scratch_made_opens_in_lerobot_and_plans_the_same(lerobot: Ask, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    data, base = write_data(tmp_path / "data", World()), tmp_path / "base"
    write_random_policy(base, RandomPolicy(dtype="bfloat16", cameras=("front",)))
    prefix = "model.vlm_with_expert.vlm."
    backbone = {
        name.removeprefix(prefix): value
        for name, value in load_file(base / "model.safetensors").items()
        if name.startswith(prefix)
    }
    save_file(backbone, base / "vlm" / "model.safetensors")
    small = {"num_vlm_layers": 2, "chunk_size": 8, "n_action_steps": 8, "num_steps": 2}
    (tmp_path / "small.json").write_text(json.dumps(small | {"resize_imgs_with_padding": [64, 64]}))
    words = ["--backbone", base / "vlm", "--dataset", data, "--policy-config", tmp_path / "small.json", "--out"]
    run = [*words, tmp_path / "run", "--steps", "1", "--batch-size", "2", "--device", "cpu"]
    assert train_command(["scratch", *map(str, run)]) == 0

    saved = (tmp_path / "run" / "checkpoints" / "last" / "pretrained_model").resolve()
    policy = SmolVLAPolicy.from_pretrained(saved)
    rng = np.random.default_rng(4)
    state = rng.normal(0, 1, policy.config.state_dim).astype(np.float32)
    pictures = {
        camera.name: rng.integers(0, 256, (camera.height, camera.width, 3), dtype=np.uint8)
        for camera in policy.settings.cameras
    }
    noise = torch.randn(1, 8, 32, generator=torch.Generator().manual_seed(2))
    given: dict[str, Any] = {f"image/{name}": picture for name, picture in pictures.items()}
    np.savez(tmp_path / "seen.npz", **given, state=state, task="go", noise=noise.numpy())
    lerobot("chunk", folder=saved, inputs=tmp_path / "seen.npz", out=tmp_path / "chunk.npz")
    actions = policy.predict_action_chunk(policy.preprocess({**pictures, STATE: state, "task": "go"}), noise)
    assert isinstance(actions, torch.Tensor)
    with np.load(tmp_path / "chunk.npz") as content:
        theirs = content["actions"]
    assert np.abs(policy.postprocess(actions).numpy() - theirs).max() <= 1e-5 * np.abs(theirs).max()
