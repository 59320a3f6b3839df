# SPDX-License-Identifier: Apache-2.0
"""Every number of a run changes what it says; augmentation does what its strengths say and no more; several processes
have the gradient of one."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from safetensors.torch import load_file

from vla_edge.training.augment import augment
from vla_edge.training.loop_inputs import assemble
from vla_edge.training.run_config import AugmentConfig
from vla_edge.training.run_files import read_metrics
from vla_edge.training.runs import fine_tune

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.training.training_world import ACCELERATE_LAUNCH, one_thread, two_steps, write_chunked_world

one_thread()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chunked_world(tmp_path_factory.mktemp("knobs"))


config = partial(two_steps, save=False)


@pytest.fixture(scope="module")
def plain(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The second step's log of a run without any setting."""
    out = tmp_path_factory.mktemp("plain") / "run"
    fine_tune(config(world, out))
    return read_metrics(out)[-1]


@pytest.mark.parametrize(
    ("text", "log"),
    [
        ("optimizer.lr=1e-4", "lr"),
        ("optimizer.grad_clip_norm=1e-9", "loss"),
        ("schedule.warmup_steps=30000", "lr"),
        ("schedule.decay_steps=1000", "lr"),
        ("schedule.decay_lr=9e-4", "lr"),
        ("seed=7", "loss"),
        ("batch_size=2", "loss"),
        ("accumulation=2", "epoch"),
        ("augment.most=6", "loss"),
        ("padded_dims=true", "loss"),
        ("statistics=checkpoint", "loss"),
        ("precision=bf16", "loss"),
    ],
)
def test_each_number_of_a_run_changes_its_second_step(
    world: Path, tmp_path: Path, plain: dict[str, Any], text: str, log: str
) -> None:
    more = () if text != "schedule.decay_lr=9e-4" else ("schedule.warmup_steps=0",)
    fine_tune(config(world, tmp_path / "run", text, *more))
    assert read_metrics(tmp_path / "run")[-1][log] != plain[log]


def test_what_is_frozen_or_adapted_decides_which_weights_train(world: Path, tmp_path: Path) -> None:
    def trained(*texts: str) -> set[str]:
        return set(assemble(config(world, tmp_path / "x", *texts)).trained)

    usual = trained()
    assert any("lm_expert" in name for name in usual) and not any(".vlm." in name for name in usual)
    assert not any("state_proj" in name for name in trained("freeze.state_proj=false"))
    whole = trained("freeze.expert_only=false", "freeze.vision=false")
    towers = {name for name in whole if "vision_model" in name}
    assert towers and whole - towers == trained("freeze.expert_only=false", "freeze.vision=true")
    adapters = trained("lora.rank=2")
    assert adapters != usual and len(trained("lora.rank=2", "lora.targets=.*lm_expert.*q_proj")) < len(adapters)


@pytest.mark.parametrize("text", ["lora.alpha=64", "lora.dropout=0.5"])
def test_numbers_of_the_adapters_change_the_second_step(world: Path, tmp_path: Path, text: str) -> None:
    found = []
    for name, texts in (("plain", ()), ("changed", (text,))):
        fine_tune(config(world, tmp_path / name, "lora.rank=2", *texts))
        found.append(read_metrics(tmp_path / name)[-1]["loss"])
    assert found[0] != found[1]


# ---- augmentation

OFF = replace(AugmentConfig(), **{item.name: 0.0 for item in fields(AugmentConfig) if item.name != "most"}, most=6)
STRENGTHS = [item.name for item in fields(AugmentConfig) if item.name != "most"]


def with_strength(name: str, strength: float) -> AugmentConfig:
    changed: dict[str, Any] = {name: strength}
    return replace(OFF, **changed)


def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(40, 200, (32, 48, 3)).astype(np.uint8)


@pytest.mark.parametrize("name", STRENGTHS)
def test_a_strength_of_zero_leaves_the_picture_and_a_larger_one_changes_it_more(name: str) -> None:
    def away(strength: float) -> float:
        wanted = with_strength(name, strength)
        changed = [augment(picture(), wanted, np.random.default_rng(seed)) for seed in range(20)]
        return float(np.mean([np.abs(image.astype(int) - picture()).mean() for image in changed]))

    assert away(0.0) <= 0.5, "rounding of the hue's conversion"
    assert away(0.0) < away(0.1) < away(0.4)


def test_colours_keep_to_their_range_and_shifts_to_theirs() -> None:
    grey = np.full((32, 48, 3), 100, np.uint8)
    factors = [augment(grey, replace(OFF, brightness=0.2), np.random.default_rng(s)).mean() / 100 for s in range(200)]
    assert 0.8 <= min(factors) < 0.82 and 1.18 < max(factors) <= 1.2
    for name in ("saturation", "sharpness", "contrast"):
        assert np.array_equal(augment(grey, with_strength(name, 0.5), np.random.default_rng(1)), grey), name
    spot = np.zeros((40, 80, 3), np.uint8)
    cv2.rectangle(spot, (38, 18), (41, 21), (255, 255, 255), -1)
    for seed in range(50):
        moved = augment(spot, replace(OFF, shift=0.05), np.random.default_rng(seed))[:, :, 0].astype(float)
        rows, columns = (
            float((moved.sum(axis) * np.arange(moved.shape[1 - axis])).sum() / moved.sum()) for axis in (1, 0)
        )
        assert abs(rows - 19.5) <= 0.05 * 40 + 0.1 and abs(columns - 39.5) <= 0.05 * 80 + 0.1


def test_most_limits_how_many_changes_a_picture_gets_and_a_generator_repeats_them() -> None:
    def kinds(most: int, seed: int) -> np.ndarray:
        return augment(picture(), replace(AugmentConfig(), most=most), np.random.default_rng(seed))

    assert np.array_equal(kinds(0, 1), picture())
    assert np.array_equal(kinds(2, 1), kinds(2, 1)) and not np.array_equal(kinds(2, 1), kinds(2, 2))


# ---- several processes

GRADIENT = '''
import sys
import torch
from safetensors.torch import save_file
from accelerate import PartialState
import vla_edge.policies.smolvla.policy as policy
from vla_edge.policies.smolvla.policy import SmolVLAPolicy
from vla_edge.training.command import main

torch.set_num_threads(1)
noise = SmolVLAPolicy._noise


def of_the_state(self, inputs, given):
    """Noise that follows from the sample itself, whichever process holds it."""
    shape = (len(inputs.state), self.config.chunk_size, self.config.max_action_dim)
    places = torch.arange(shape[1] * shape[2]).reshape(1, *shape[1:])
    return torch.sin(1000 * inputs.state.sum(1)[:, None, None] + places)


SmolVLAPolicy._noise = of_the_state
policy.sample_time = lambda batch, device: torch.full((batch,), 0.4)
clip = torch.nn.utils.clip_grad_norm_


def keep(weights, norm):
    weights = list(weights)
    if PartialState().is_main_process:
        save_file({str(i): w.grad.clone() for i, w in enumerate(weights) if w.grad is not None}, sys.argv[1])
    return clip(weights, norm)


torch.nn.utils.clip_grad_norm_ = keep
sys.exit(main(sys.argv[2:]))
'''


def test_two_processes_have_the_gradient_of_one_with_their_joint_batch(world: Path, tmp_path: Path) -> None:
    """Episodes of six frames and chunks of four: the processes' batches hold different numbers of valid steps."""
    script = tmp_path / "gradient.py"
    script.write_text(GRADIENT)
    gradients = []
    for processes in (1, 2):
        words: list[object] = ["fine-tune", "--checkpoint", world / "policy", "--dataset", world / "data"]
        words += ["--out", tmp_path / f"run{processes}", "--steps", 1, "--no-save", "--device", "cpu", "--workers", 0]
        words += ["--batch-size", 8 // processes]
        launcher = ACCELERATE_LAUNCH if processes > 1 else []
        file = tmp_path / f"{processes}.safetensors"
        command_line = [sys.executable, *launcher, script, file, *words]
        subprocess.run([str(word) for word in command_line], check=True, timeout=1800, capture_output=True)
        gradients.append(load_file(file))
    one, two = gradients
    assert one.keys() == two.keys() and len(one) > 10
    scale = max(float(value.abs().max()) for value in one.values())
    worst = max(float((one[name] - two[name]).abs().max()) for name in one)
    assert worst <= 1e-5 * scale
    rows = [read_metrics(tmp_path / f"run{processes}")[-1] for processes in (1, 2)]
    assert len(read_metrics(tmp_path / "run2")) == 1, "one of the processes writes"
    assert rows[0]["loss"] == pytest.approx(rows[1]["loss"], rel=1e-5)
    assert rows[0]["grad_norm"] == pytest.approx(rows[1]["grad_norm"], rel=1e-5)
