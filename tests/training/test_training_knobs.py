# SPDX-License-Identifier: Apache-2.0
"""Every field of a run changes what it says: one table of all of them, judged by the logs, files and weights of runs of
two or three steps. Augmentation does what its strengths say and no more; several processes have the gradient of one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vla_edge.errors import ConfigError
from vla_edge.policies.smolvla.policy import SmolVLAPolicy
from vla_edge.training.augment import augment
from vla_edge.training.craft.anchors import AnchorPlan, build_anchors
from vla_edge.training.loop_inputs import assemble
from vla_edge.training.run_config import AugmentConfig, TaskData, TrainConfig
from vla_edge.training.run_files import read_metrics
from vla_edge.training.runs import fine_tune
from vla_edge.training.sequential.phases import StageTask, read_stages, with_datasets

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.training.training_world import ACCELERATE_LAUNCH, one_thread, two_steps

one_thread()


@pytest.fixture(scope="module")
def anchors(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("knobs") / "anchors"
    plan = AnchorPlan((TaskData("data", str(world / "data")),), 8)
    build_anchors(SmolVLAPolicy.from_pretrained(world / "policy"), plan, folder, torch.device("cpu"))
    return folder


# ---- one table

SAVED = ("save=true", "save_every=1")
VALIDATED = ("validate_every=1", "validation_frames=4")
LORA = ("lora.rank=2",)
NOISE = ("kind=delta", "delta_target=noise")
CRAFT = (
    *("craft.anchors=ANCHORS", "craft.every=1", "craft.anchor_batch=4", "statistics=checkpoint", "steps=3"),
    *("craft.lambda_lr=0.5", "craft.conflict_cosine=1"),
)
STRONG = ("craft.lambda_start=3", "craft.lambda_lr=100", "craft.epsilon_start=0", "craft.epsilon_end=0")

KNOBS: list[tuple[tuple[str, ...], str, str]] = [
    ((), "kind=delta", "delta_loss"),
    ((), "kind=distill num_steps=1", "loss"),
    (("kind=distill", "num_steps=2"), "num_steps=1", "loss"),
    (("kind=delta",), "delta_target=noise", "delta_loss"),
    ((), "steps=3", "rows"),
    ((), "batch_size=2", "loss"),
    ((), "accumulation=2", "epoch"),
    ((), "precision=bf16", "loss"),
    ((), "seed=7", "loss"),
    ((), "save=true", "checkpoints"),
    (SAVED, "save_every=2", "checkpoints"),
    (SAVED, "keep=1", "checkpoints"),
    (("steps=3",), "log_every=3", "rows"),
    ((), "validate_every=2", "validation"),
    (VALIDATED, "validation_frames=8", "validation"),
    ((), "statistics=checkpoint", "loss"),
    ((), "padded_dims=true", "loss"),
    ((), "n_action_steps=2", "n_action_steps"),
    (NOISE, "n_action_steps=2", "n_action_steps"),
    ((), "num_steps=3", "num_steps"),
    ((), "image_size=[32,32]", "loss"),
    ((), "optimizer.lr=1e-4", "lr"),
    (("steps=3",), "optimizer.betas=[0.1,0.2]", "loss"),
    ((), "optimizer.eps=0.1", "loss"),
    ((), "optimizer.weight_decay=100", "loss"),
    ((), "optimizer.grad_clip_norm=1e-9", "loss"),
    ((), "schedule.warmup_steps=30000", "lr"),
    ((), "schedule.decay_steps=1000", "lr"),
    (("schedule.warmup_steps=0",), "schedule.decay_lr=9e-4", "lr"),
    (("freeze.expert_only=false",), "freeze.vision=false", "trained"),
    ((), "freeze.expert_only=false", "trained"),
    ((), "freeze.state_proj=false", "trained"),
    ((), "lora.rank=2", "trained"),
    (LORA, "lora.alpha=64", "loss"),
    (LORA, "lora.dropout=0.5", "loss"),
    (LORA, "lora.targets=.*lm_expert.*q_proj", "trained"),
    ((), "augment.most=6", "loss"),
    *((("augment.most=6",), f"augment.{name}=0", "loss") for name in AugmentConfig.__slots__ if name != "most"),
    (("statistics=checkpoint", "craft.every=1"), "craft.anchors=ANCHORS", "craft"),
    (CRAFT, "craft.every=2", "craft"),
    (CRAFT, "craft.conflict_cosine=-1", "grad_conflict"),
    (CRAFT, "craft.merge=equal", "grad_norm"),
    ((*CRAFT, "craft.lambda_start=3"), "craft.merge=task_priority", "grad_norm"),
    (CRAFT, "craft.lambda_start=3", "grad_norm"),
    (CRAFT, "craft.lambda_lr=0.1", "lambda"),
    ((*CRAFT, *STRONG), "craft.lambda_max=3", "lambda"),
    (CRAFT, "craft.epsilon_start=2", "epsilon"),
    (CRAFT, "craft.epsilon_end=0.5", "epsilon"),
    (CRAFT, "craft.anchor_batch=2", "retention_loss"),
    (CRAFT, "craft.loss=cosine", "retention_loss"),
    (CRAFT, "craft.loss=l1", "retention_loss"),
    (CRAFT, "craft.raw=true", "retention_loss"),
    (NOISE, "delta.use_cls_head=false", "cls_loss"),
    (NOISE, "delta.num_cls_prefix=3 delta.num_cls_suffix=3", "cls_loss"),
    (NOISE, "delta.vicreg_weight=1", "loss"),
    (NOISE, "delta.vicreg_lambda=50", "cls_loss"),
    (NOISE, "delta.vicreg_mu=50", "cls_loss"),
    (NOISE, "delta.vicreg_nu=50", "cls_loss"),
    (NOISE, "delta.cls_noise_scale=0.5", "delta_loss"),
    (NOISE, "delta.cls_similarity_threshold=0.9", "cls_similarity_threshold"),
    (NOISE, "delta.cls_action_context=1", "cls_loss"),
]
"""What a run has set, the field that is changed, and what must differ: a number of the last log, or what `told` names.
ANCHORS stands for their folder."""
ELSEWHERE = {
    "policy": "test_a_checkpoint_is_trained_on_with_its_own_way_of_seeing",
    "output": "test_an_existing_run_is_never_overwritten",
    "data": "test_held_out_episodes_are_fixed_by_the_seed_and_never_all",
    "rename": "test_lerobots_command_fine_tunes_the_three_camera_base_on_two_cameras_through_to_a_chunk",
    "device": "test_a_process_that_trained_on_the_cpu_does_not_take_it_for_the_gpu",
    "workers": "test_loaders_are_used_by_default_where_pictures_are_decoded_all_along",
    "cache_mb": "test_one_budget_of_decoded_pictures_is_shared_by_loaders_and_datasets",
    "cache_vision": "test_cached_training_equals_training_on_pictures_bit_for_bit_and_runs_no_tower_the_second_time",
    "cache_prefix": "test_anchors_of_craft_are_kept_too",
    "cache_type": "test_smaller_kinds_change_the_loss_by_little",
    "trackers": "test_tensorboard_gets_what_metrics_get",
    "wandb": "test_wandb_gets_project_entity_and_name_and_a_resumed_run_goes_on_in_the_same",
}
"""Fields, or whole parts, that a test of their own judges."""


def leaves(kind: Any) -> set[str]:
    """Every field of a configuration as `--set` names it."""
    found = set()
    for item in fields(kind):
        usual = getattr(kind("", "", ()), item.name) if kind is TrainConfig else None
        inner = leaves(type(usual)) if is_dataclass(usual) and item.name not in ELSEWHERE else set()
        found |= {f"{item.name}.{name}" for name in inner} or {item.name}
    return found


def test_every_field_of_a_run_stands_in_the_table_or_has_a_test_of_its_own() -> None:
    files = [file.read_text() for file in Path(__file__).parent.glob("test_*.py")]
    assert all(any(f"def {name}(" in text for text in files) for name in ELSEWHERE.values())
    changed = {word.partition("=")[0] for _, text, _ in KNOBS for word in text.split()}
    assert changed | set(ELSEWHERE) == leaves(TrainConfig)


@pytest.fixture(scope="module")
def told(
    world: Path, anchors: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[tuple[str, ...]], dict[str, Any]]:
    """What a run with some settings says: its last numbers, the retention's history, its files, policy and weights."""

    @cache
    def of(texts: tuple[str, ...]) -> dict[str, Any]:
        out = tmp_path_factory.mktemp("knob") / "run"
        named = [text.replace("ANCHORS", str(anchors)) for text in texts]
        data = (TaskData("data", str(world / "data"), held_out=(3,)),)
        setup, _ = fine_tune(two_steps(world, out, *named, data=data, save=False))
        rows = read_metrics(out)
        craft = [row for row in rows if "retention_loss" in row]
        return {
            **{item.name: getattr(setup.policy.config, item.name) for item in fields(setup.policy.config)},
            **{name: value for row in rows for name, value in row.items()},
            **{name: [row[name] for row in craft] for name in (craft[0] if craft else {}) if name != "s_per_step"},
            "rows": len(rows),
            "craft": len(craft),
            "checkpoints": sorted(path.name for path in (out / "checkpoints").iterdir()),
            "trained": set(setup.trained),
        }

    return of


@pytest.mark.parametrize(("usual", "text", "where"), KNOBS, ids=[text for _, text, _ in KNOBS])
def test_each_field_changes_what_a_run_says(told: Any, usual: tuple[str, ...], text: str, where: str) -> None:
    plain, changed = told(usual), told((*usual, *text.split()))
    assert plain.get(where) != changed.get(where)


def test_a_threshold_decides_what_counts_as_the_same_scene(world: Path, tmp_path: Path) -> None:
    verdicts = []
    for threshold in (-1, 1):
        texts = (*NOISE, f"delta.cls_similarity_threshold={threshold}", "steps=1", "save_every=1")
        fine_tune(two_steps(world, tmp_path / str(threshold), *texts))
        policy = SmolVLAPolicy.from_pretrained(tmp_path / str(threshold) / "checkpoints/last/pretrained_model")
        sample = assemble(two_steps(world, tmp_path / "x")).training[0].sample(0, 0)
        batch = policy.preprocess({**sample.images, "observation.state": sample.state, "task": sample.task})
        for _ in range(2):
            found = policy.predict_action_chunk(batch, compute_cls_similarity=True)
        verdicts.append(bool(found[2]))
    assert verdicts == [True, False]


def test_one_budget_of_decoded_pictures_is_shared_by_loaders_and_datasets(world: Path, tmp_path: Path) -> None:
    data = (TaskData("data", str(world / "data"), held_out=(0, 1)), TaskData("more", str(world / "more")))
    setup = assemble(two_steps(world, tmp_path / "x", "cache_mb=54", "workers=3", data=data))
    assert [len(frames) for frames in (*setup.training, *setup.validation)] == [24, 18, 12]
    assert [frames.room / 2**20 for frames in (*setup.training, *setup.validation)] == [8, 6, 12]
    setup.validation[0].room = 64 * 64 * 3  # of one picture
    for _ in range(2):
        for number in range(12):
            setup.validation[0].sample(number, 0)
    assert setup.validation[0].room == 0 and len(setup.validation[0]._kept) == 1


@pytest.mark.parametrize("kind", ["delta", "distill"])
@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("lora.rank=2", "--lora-rank"),
        ("craft.anchors=a", "--craft-anchors"),
        ("padded_dims=true", "--padded-dims"),
        ("statistics=first", "--statistics first"),
        ("image_size=[32,32]", "--set image_size"),
        ("freeze.vision=false", "--no-freeze-vision"),
        ("freeze.expert_only=false", "--no-expert-only"),
        ("freeze.state_proj=true", "--train-state-proj"),
    ],
)
def test_what_a_kind_of_run_cannot_heed_is_refused(
    world: Path, tmp_path: Path, kind: str, text: str, named: str
) -> None:
    flow = ("num_steps=2",) if kind == "distill" else ()
    with pytest.raises(ConfigError, match=f"{named} does not go with .*{kind}, which keeps to its policy as it is"):
        assemble(two_steps(world, tmp_path / "x", f"kind={kind}", text, *flow))


def test_what_is_set_without_effect_is_said(world: Path, tmp_path: Path) -> None:
    texts = ["delta.vicreg_mu=2", "lora.alpha=3", "craft.every=2", "augment.hue=0.1", "cache_type=int8"]
    notes = assemble(two_steps(world, tmp_path / "x", *texts, "wandb.project=a", "delta_target=noise")).notes
    said = [note.partition(" is set and has no effect without ")[::2] for note in notes if "no effect" in note]
    assert {name for name, _ in said} == {"delta", "delta_target", "lora", "craft", "augment", "cache_type", "wandb"}
    assert not any("no effect" in note for note in assemble(two_steps(world, tmp_path / "x")).notes)


def test_a_stage_keeps_the_tolerance_of_its_task_wherever_its_data_lie() -> None:
    plan = read_stages("kuavo")
    tasks = tuple(replace(task, tolerance_s=0.02) for task in plan.tasks)
    moved = with_datasets(replace(plan, tasks=tasks), {tasks[0].name: "elsewhere"})
    assert moved.tasks[0] == StageTask(tasks[0].name, "elsewhere", 16, 16, 0.02)


def test_what_is_frozen_decides_which_towers_train(world: Path, tmp_path: Path) -> None:
    def trained(*texts: str) -> set[str]:
        return set(assemble(two_steps(world, tmp_path / "x", *texts)).trained)

    usual = trained()
    assert any("lm_expert" in name for name in usual) and not any(".vlm." in name for name in usual)
    assert usual - trained("freeze.state_proj=false") == {"model.state_proj.weight", "model.state_proj.bias"}
    whole = trained("freeze.expert_only=false", "freeze.vision=false")
    towers = {name for name in whole if "vision_model" in name}
    assert towers and whole - towers == trained("freeze.expert_only=false", "freeze.vision=true")


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
