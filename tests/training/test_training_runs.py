# SPDX-License-Identifier: Apache-2.0
"""Runs from start to end on a tiny policy: exact resume, checkpoints, adapters, CRaFT, and every way they can fail."""

from __future__ import annotations

import contextlib
import json
import shutil
import struct
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from vla_edge.camera_names import short_name
from vla_edge.errors import CheckpointError, ConfigError, TrainingError
from vla_edge.policies.smolvla.policy import SmolVLAPolicy
from vla_edge.training import loop as training_loop
from vla_edge.training.command import main
from vla_edge.training.craft.anchors import AnchorPlan, build_anchors
from vla_edge.training.progress import silent
from vla_edge.training.run_config import AugmentConfig, CraftConfig, LoraConfig, OptimizerConfig, TaskData, TrainConfig
from vla_edge.training.run_files import read_metrics, read_status
from vla_edge.training.runs import fine_tune, resume
from vla_edge.training.sequential.phases import PolicySettings, SharedSettings, Stage, StagePlan, StageTask
from vla_edge.training.sequential.task_sequence import StageRun, train_stages
from vla_edge.training.training_frames import Frames, FrameSettings, collate

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.training.training_world import (
    ACCELERATE_LAUNCH,
    CAMERA,
    World,
    interrupt_at,
    one_thread,
    two_steps,
    write_data,
    write_policy,
)

one_thread()
STEPS = 6


def config(world: Path, output: Path, **changes) -> TrainConfig:
    data = (TaskData("data", str(world / "data"), held_out=(5,)),)
    return two_steps(world, output, **{"steps": STEPS, "save_every": 3, "data": data, **changes})


def state_of(run: Path, step: int) -> dict[str, bytes]:
    """Every byte of a checkpoint, by file; paths inside run.json and train_config.json differ by the run's folder."""
    folder = run / "checkpoints" / f"{step:06d}"
    skipped = ("run.json", "train_config.json")
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name not in skipped
    }


VARIANTS: dict[str, dict[str, Any]] = {
    "bfloat16 file, two datasets, accumulation": {"accumulation": 2, "validate_every": 2},
    "augmentation and loader workers": {"workers": 1, "augment": AugmentConfig(most=2)},
    "adapters with dropout": {"lora": LoraConfig(rank=2, dropout=0.2)},
    "delta expert, stale target": {"kind": "delta", "delta_target": "stale"},
    "distilled to two steps": {"kind": "distill", "num_steps": 2, "validate_every": 2},
    "CRaFT": {"craft": CraftConfig(every=2, anchor_batch=3), "statistics": "checkpoint"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_interrupted_and_resumed_run_equals_an_uninterrupted_one_bit_for_bit(world, tmp_path, variant):
    changes = dict(VARIANTS[variant])
    if "two datasets" in variant:
        changes["data"] = (
            TaskData("data", str(world / "data"), 0.7, held_out=(5,)),
            TaskData("more", str(world / "more"), 0.3),
        )
    if "craft" in changes:
        build_anchors(
            SmolVLAPolicy.from_pretrained(world / "policy"),
            AnchorPlan((TaskData("more", str(world / "more")),), 10),
            tmp_path / "anchors",
            torch.device("cpu"),
        )
        changes["craft"] = replace(changes["craft"], anchors=str(tmp_path / "anchors"))
    fine_tune(config(world, tmp_path / "whole", **changes))
    with pytest.raises(KeyboardInterrupt):
        fine_tune(
            config(world, tmp_path / "broken", **changes), interrupt_at(5)
        )  # two steps after the checkpoint of step 3
    assert read_status(tmp_path / "broken").state == "interrupted"
    resume(tmp_path / "broken")
    whole, broken = state_of(tmp_path / "whole", STEPS), state_of(tmp_path / "broken", STEPS)
    assert whole.keys() == broken.keys() and [name for name in whole if whole[name] != broken[name]] == []
    timeless = [
        [{k: v for k, v in row.items() if k != "s_per_step"} for row in read_metrics(tmp_path / name)]
        for name in ("whole", "broken")
    ]
    assert timeless[0] == timeless[1] and len(timeless[0]) == STEPS
    if "craft" in changes:
        for name in ("lambda_history.csv", "craft_state.json"):
            assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "broken" / name).read_bytes()


def header(file: Path) -> dict[str, tuple[str, list[int]]]:
    """Name → (type, shape) of a safetensors file, read from its header alone."""
    with file.open("rb") as stream:
        content = json.loads(stream.read(struct.unpack("<Q", stream.read(8))[0]))
    return {name: (item["dtype"], item["shape"]) for name, item in content.items() if name != "__metadata__"}


@pytest.mark.parametrize("lora", [0, 2])
def test_a_fine_tuned_checkpoint_has_lerobots_layout_and_the_sources_names_and_types(world, tmp_path, lora):
    fine_tune(config(world, tmp_path / "run", steps=2, save_every=2, lora=LoraConfig(rank=lora)))
    folder = tmp_path / "run" / "checkpoints" / "last"
    assert folder.is_symlink() and folder.readlink() == Path("000002")
    assert {file.name for file in (folder / "training_state").iterdir()} >= {
        "optimizer_state.safetensors",
        "optimizer_param_groups.json",
        "scheduler_state.json",
        "rng_state.safetensors",
        "training_step.json",
    }
    assert {file.name for file in (folder / "pretrained_model").iterdir()} >= {
        "config.json",
        "model.safetensors",
        "train_config.json",
        "policy_preprocessor.json",
        "policy_postprocessor.json",
        "policy_preprocessor_step_5_normalizer_processor.safetensors",
        "policy_postprocessor_step_0_unnormalizer_processor.safetensors",
    }
    before, after = (
        header(world / "policy" / "model.safetensors"),
        header(folder / "pretrained_model" / "model.safetensors"),
    )
    assert {name: shape for name, (_, shape) in before.items()} == {name: shape for name, (_, shape) in after.items()}
    loaded = SmolVLAPolicy.from_pretrained(folder / "pretrained_model")  # strict: any missing or extra name is an error
    assert loaded.config.action_dim == 2
    moved = load_file(folder / "pretrained_model" / "model.safetensors")
    source = load_file(world / "policy" / "model.safetensors")
    changed = {name for name in moved if not torch.equal(moved[name].float(), source[name].float())}
    assert {name for name in moved if moved[name].dtype != source[name].dtype} <= changed  # frozen: as published
    assert changed and not any("vision_model" in name or "connector" in name for name in changed)
    assert any("lm_expert" in name for name in changed)


def test_training_narrow_weights_keeps_what_rounding_would_lose(world, tmp_path):
    """bfloat16 has 8 bits: a step of 1e-5 vanishes in it."""
    fine_tune(config(world, tmp_path / "run", steps=1, save_every=1, optimizer=OptimizerConfig(lr=1e-5)))
    saved = load_file(tmp_path / "run" / "checkpoints" / "last" / "pretrained_model" / "model.safetensors")
    source = load_file(world / "policy" / "model.safetensors")
    name = next(name for name in source if "lm_expert" in name and source[name].dtype == torch.bfloat16)
    assert saved[name].dtype == torch.float32 and not torch.equal(saved[name], saved[name].bfloat16().float())


def test_a_checkpoint_of_a_run_holds_the_bytes_that_save_pretrained_writes(world, tmp_path):
    setup, _ = fine_tune(config(world, tmp_path / "run", steps=2, save_every=2))
    setup.policy.save_pretrained(tmp_path / "saved")
    folder = tmp_path / "run" / "checkpoints" / "last" / "pretrained_model"
    saved = {file.relative_to(tmp_path / "saved"): file for file in (tmp_path / "saved").rglob("*") if file.is_file()}
    assert len(saved) > 8
    assert all(file.read_bytes() == (folder / name).read_bytes() for name, file in saved.items())


def test_delta_training_marks_the_head_and_leaves_the_base_policy_as_it_was(world, tmp_path):
    fine_tune(config(world, tmp_path / "run", kind="delta", steps=2, save_every=2))
    folder = tmp_path / "run" / "checkpoints" / "last" / "pretrained_model"
    trained = SmolVLAPolicy.from_pretrained(folder)
    base = SmolVLAPolicy.from_pretrained(world / "policy")
    assert trained.config.cls_trained and trained.config.use_cls_head and trained.config.has_delta
    before, after = base.state_dict(), trained.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)  # frozen: exactly equal
    data = Frames(TaskData("data", str(world / "data")), FrameSettings((CAMERA,), 4, 0))
    noise = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(0))
    chunks = [
        policy.predict_action_chunk(collate([data.sample(3, 0)], base), noise=noise) for policy in (base, trained)
    ]
    assert all(isinstance(chunk, torch.Tensor) for chunk in chunks)
    assert torch.equal(chunks[0], chunks[1])  # type: ignore[arg-type] # the head and the delta expert change the policy's own chunk by exactly 0
    row = read_metrics(tmp_path / "run")[-1]
    assert {"delta_loss", "cls_loss", "delta_loss_relative", "loss"} <= row.keys()


def test_bf16_autocast_trains_and_keeps_float32_weights(world, tmp_path):
    fine_tune(config(world, tmp_path / "run", steps=2, save_every=2, precision="bf16"))
    losses = [row["loss"] for row in read_metrics(tmp_path / "run")]
    plain = tmp_path / "plain"
    fine_tune(config(world, plain, steps=2, save_every=2))
    reference = [row["loss"] for row in read_metrics(plain)]
    assert losses != reference and losses == pytest.approx(reference, rel=0.05)  # bfloat16 keeps 8 bits
    saved = load_file(tmp_path / "run" / "checkpoints" / "last" / "pretrained_model" / "model.safetensors")
    assert any(not torch.equal(value, value.bfloat16().float()) for name, value in saved.items() if "lm_expert" in name)


@pytest.mark.soak
@pytest.mark.parametrize("lora", [0, 2])
def test_two_processes_train_one_policy_and_resume_bit_for_bit(world, tmp_path, lora):
    def launch(*words: object) -> None:
        command_line = [sys.executable, *ACCELERATE_LAUNCH]
        subprocess.run(
            [*command_line, "-m", "vla_edge.training.command", *map(str, words)],
            check=True,
            timeout=1800,
            capture_output=True,
        )

    common = [
        "--checkpoint",
        world / "policy",
        "--dataset",
        world / "data",
        "--batch-size",
        2,
        "--accumulation",
        2,
        "--device",
        "cpu",
        "--log-every",
        1,
        "--lora-rank",
        lora,
    ]
    launch("fine-tune", *common, "--out", tmp_path / "whole", "--steps", 4, "--save-every", 2)
    shutil.copytree(tmp_path / "whole", tmp_path / "broken", symlinks=True)
    shutil.rmtree(tmp_path / "broken" / "checkpoints" / "000004")
    status = json.loads((tmp_path / "broken" / "status.json").read_text())
    (tmp_path / "broken" / "status.json").write_text(json.dumps({**status, "state": "interrupted", "step": 2}))
    launch("resume", tmp_path / "broken")
    whole, broken = state_of(tmp_path / "whole", 4), state_of(tmp_path / "broken", 4)
    assert "training_state/rng_state_1.safetensors" in whole
    assert [name for name in whole if whole[name] != broken[name]] == []
    trained = SmolVLAPolicy.from_pretrained(tmp_path / "whole").state_dict()  # strict: adapters are merged
    before = SmolVLAPolicy.from_pretrained(world / "policy").state_dict()
    assert any("lm_expert" in name and not torch.equal(value, before[name]) for name, value in trained.items())


def test_padded_dimensions_enter_the_loss_only_when_asked_for(world, tmp_path):
    fine_tune(config(world, tmp_path / "real", steps=1, save_every=1))
    fine_tune(config(world, tmp_path / "padded", steps=1, save_every=1, padded_dims=True))
    real, padded = (read_metrics(tmp_path / name)[0]["loss"] for name in ("real", "padded"))
    assert real != padded


def test_sixteen_dimensions_are_padded_to_the_policys_and_cropped_back(tmp_path):
    write_policy(tmp_path / "policy", max_state_dim=32, max_action_dim=32)
    write_data(tmp_path / "data", World(episodes=2, length=4, dims=16))
    setup, _ = fine_tune(
        TrainConfig(
            str(tmp_path / "policy"),
            str(tmp_path / "run"),
            (TaskData("d", str(tmp_path / "data")),),
            steps=1,
            batch_size=2,
            device="cpu",
        )
    )
    policy = SmolVLAPolicy.from_pretrained(tmp_path / "run" / "checkpoints" / "last" / "pretrained_model")
    assert policy.config.action_dim == policy.config.state_dim == 16 and policy.settings.action.low.shape == (16,)
    sample = setup.training[0].sample(0, 0)
    chunk = policy.predict_action_chunk(collate([sample], policy))
    assert isinstance(chunk, torch.Tensor)
    actions = policy.postprocess(chunk)
    assert actions.shape == (1, 1, 16) and torch.isfinite(actions).all()


# ---- CRaFT and its anchors


def anchors_of(world: Path, target: Path, **changes) -> Path:
    plan = AnchorPlan((TaskData("more", str(world / "more")),), 10, **changes)
    build_anchors(SmolVLAPolicy.from_pretrained(world / "policy"), plan, target, torch.device("cpu"))
    return target


def with_craft(world: Path, output: Path, anchors: Path, **changes) -> TrainConfig:
    return config(world, output, **{"statistics": "checkpoint", "craft": CraftConfig(anchors=str(anchors)), **changes})


def test_anchors_of_another_teacher_other_statistics_or_damaged_are_refused(world, tmp_path):
    cache = anchors_of(world, tmp_path / "anchors")
    with pytest.raises(TrainingError, match="another teacher"):
        fine_tune(with_craft(world, tmp_path / "a", cache, policy=str(world / "float")))
    with pytest.raises(TrainingError, match="other statistics .*--statistics checkpoint$"):
        fine_tune(with_craft(world, tmp_path / "b", cache, statistics="union"))
    shard = cache / "shard_0000.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(bytes(data))
    with pytest.raises(TrainingError, match="shard_0000.safetensors: damaged"):
        fine_tune(with_craft(world, tmp_path / "c", cache))
    with pytest.raises(TrainingError, match="no anchor cache"):
        fine_tune(with_craft(world, tmp_path / "d", tmp_path / "nowhere"))


def test_anchoring_what_is_frozen_names_the_feature_and_the_frozen_part(world, tmp_path):
    cache = anchors_of(world, tmp_path / "anchors", groups=("velocity", "vlm"))
    with pytest.raises(TrainingError, match="vision cannot move: frozen are the VLM"):
        fine_tune(with_craft(world, tmp_path / "run", cache))
    fine_tune(
        with_craft(world, tmp_path / "lora", cache, steps=1, save_every=1, lora=LoraConfig(rank=2))
    )  # adapters move the VLM


def test_older_anchor_caches_are_told_apart_and_refused_by_name(world, tmp_path):
    token = tmp_path / "token"
    token.mkdir()
    save_file({"labels": torch.zeros(2, 3, dtype=torch.int64)}, token / "shard_0000.safetensors")
    with pytest.raises(TrainingError, match="token_level"):
        fine_tune(with_craft(world, tmp_path / "a", token))
    old = tmp_path / "old"
    old.mkdir()
    torch.save([{"labels": torch.zeros(3)}], old / "shard_0000.pt")
    with pytest.raises(TrainingError, match="token_level"):
        fine_tune(with_craft(world, tmp_path / "b", old))
    torch.save([{"hidden": torch.zeros(3)}], old / "shard_0000.pt")
    with pytest.raises(TrainingError, match="old hidden_state shard"):
        fine_tune(with_craft(world, tmp_path / "c", old))
    torch.save(Unsafe(), old / "shard_0000.pt")
    with pytest.raises(TrainingError, match="cannot be read as data only"):
        fine_tune(with_craft(world, tmp_path / "d", old))


class Unsafe:
    """A pickle that would run code."""

    def __reduce__(self):
        return print, ("ran",)


# ---- what goes wrong


def test_a_loss_that_is_not_finite_ends_with_advice_and_keeps_the_last_good_checkpoint(world, tmp_path, monkeypatch):
    whole = tmp_path / "whole"
    fine_tune(config(world, whole))
    original = training_loop.Objective.forward
    calls = []

    def spoiled(self, batch, noise=None, time=None, share=1.0):
        loss, parts = original(self, batch, noise, time)
        calls.append(1)
        return (loss * float("nan") if len(calls) == 5 else loss), parts

    monkeypatch.setattr(training_loop.Objective, "forward", spoiled)
    with pytest.raises(
        TrainingError, match=r"not finite: loss nan at step 5; lower the learning rate .*checkpoints/000003"
    ):
        fine_tune(config(world, tmp_path / "run"))
    assert read_status(tmp_path / "run").state == "failed" and "not finite" in str(read_status(tmp_path / "run").error)
    assert state_of(tmp_path / "run", 3) == state_of(whole, 3)
    monkeypatch.setattr(training_loop.Objective, "forward", original)
    resume(tmp_path / "run")
    assert state_of(tmp_path / "run", STEPS) == state_of(whole, STEPS)


def test_lack_of_memory_ends_with_advice(world, tmp_path, monkeypatch):
    def full(self, batch, noise=None, time=None, share=1.0):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(training_loop.Objective, "forward", full)
    with pytest.raises(TrainingError, match="out of memory with batch 4 × 1 in float32; use a smaller batch"):
        fine_tune(config(world, tmp_path / "run"))


def test_the_advice_on_memory_names_the_plan(world, tmp_path):
    advice = training_loop.fault_advice(MemoryError(), config(world, tmp_path / "x"), "none yet")
    assert f"`vla-train plan --checkpoint {world / 'policy'}` says what fits" in str(advice)


def test_a_full_disk_while_saving_leaves_the_last_checkpoint_whole(world, tmp_path, monkeypatch):
    from vla_edge.training import checkpoint_saving as saving

    real = saving.save_state

    def full(folder: Path, *parts):
        if "000006" in str(folder):
            raise OSError(28, "No space left on device", str(folder))
        real(folder, *parts)

    monkeypatch.setattr(saving, "save_state", full)
    with pytest.raises(OSError, match="No space left"):
        fine_tune(config(world, tmp_path / "run"))
    names = sorted(item.name for item in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["000003", "last"]
    monkeypatch.setattr(saving, "save_state", real)
    resume(tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints" / "last").readlink() == Path("000006")


def command(*words: object, capsys) -> tuple[int, str]:
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith(("error:", "failed:"))]
    return code, errors[-1] if errors else ""


BAD = {
    "missing dataset": (["--dataset", "{tmp}/nowhere"], "nowhere"),
    "empty episode list": (["--dataset", "{world}/data", "--episodes", ","], "episode list"),
    "unknown episode": (["--dataset", "{world}/data", "--episodes", "40"], "no episode 40"),
    "missing policy": (["--dataset", "{world}/data", "--checkpoint", "{tmp}/none"], "config.json: missing"),
    "wrong camera": (
        ["--dataset", "{world}/data", "--camera", f"{CAMERA}=observation.images.side"],
        "no camera side for the policy's ",
    ),
    "mistyped camera": (
        ["--dataset", "{world}/data", "--camera", f"{CAMERA[:-1]}=side"],
        f"--camera: the policy has no camera {short_name(CAMERA)[:-1]}; did you mean {short_name(CAMERA)}?",
    ),
    "batch of zero": (
        ["--dataset", "{world}/data", "--batch-size", "0"],
        "--batch-size: '0' is not a whole number from 1 up",
    ),
    "unknown device": (["--dataset", "{world}/data", "--device", "cuda"], "device cuda"),
    "CLS batch of one": (
        ["--dataset", "{world}/data", "--kind", "delta", "--batch-size", "1"],
        "VICReg needs at least 2",
    ),
    "no layer matches": (
        ["--dataset", "{world}/data", "--lora-rank", "2", "--lora-targets", "nothing"],
        "match no layer",
    ),
    "validation without episodes": (["--dataset", "{world}/data", "--validate-every", "2"], "--held-out"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_with_exit_code_2_and_leaves_no_run(world, tmp_path, capsys, case):
    if case == "unknown device" and torch.cuda.is_available():
        pytest.skip("a CUDA device is there")
    words, told = BAD[case]
    words = [word.format(tmp=tmp_path, world=world) for word in words]
    if "--checkpoint" not in words:
        words += ["--checkpoint", str(world / "policy")]
    code, line = command("fine-tune", *words, "--out", tmp_path / "run", "--steps", 2, capsys=capsys)
    assert code == 2 and told in line, line
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_data_of_other_shapes_and_unreadable_video_are_named(world, tmp_path, capsys):
    write_data(tmp_path / "wide", World(episodes=2, length=3, dims=16))
    code, line = command(
        "fine-tune",
        "--checkpoint",
        world / "policy",
        "--dataset",
        tmp_path / "wide",
        "--out",
        tmp_path / "a",
        capsys=capsys,
    )
    assert code == 2 and "has shape [16], the policy takes one axis of at most 8" in line
    code, line = command(
        "fine-tune",
        "--checkpoint",
        world / "policy",
        "--dataset",
        world / "data",
        "--dataset",
        tmp_path / "wide",
        "--out",
        tmp_path / "b",
        capsys=capsys,
    )
    assert code == 2 and "different shapes" in line
    write_data(tmp_path / "video", World(episodes=2, length=3, video=True))
    for file in (tmp_path / "video").rglob("*.mp4"):
        file.write_bytes(b"no video")
    code, line = command(
        "fine-tune",
        "--checkpoint",
        world / "policy",
        "--dataset",
        tmp_path / "video",
        "--out",
        tmp_path / "c",
        "--device",
        "cpu",
        capsys=capsys,
    )
    assert code == 2 and ".mp4" in line


def test_scratch_is_refused_without_backbone_weights_and_trains_with_them(world, tmp_path, capsys):
    vlm = tmp_path / "vlm"
    shutil.copytree(world / "float" / "vlm", vlm)
    options = tmp_path / "options.json"
    options.write_text(
        json.dumps(
            {
                "num_vlm_layers": 2,
                "chunk_size": 2,
                "n_action_steps": 2,
                "resize_imgs_with_padding": [64, 64],
                "pad_language_to": "max_length",
            }
        )
    )
    words = [
        "scratch",
        "--backbone",
        vlm,
        "--dataset",
        world / "data",
        "--policy-config",
        options,
        "--steps",
        1,
        "--batch-size",
        2,
        "--device",
        "cpu",
    ]
    code, line = command(*words, "--out", tmp_path / "a", capsys=capsys)
    assert code == 2 and "backbone weights cannot be read" in line and not (tmp_path / "a").exists()
    weights = load_file(world / "float" / "model.safetensors")
    prefix = "model.vlm_with_expert.vlm."
    save_file(
        {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)},
        vlm / "model.safetensors",
    )
    assert main([str(word) for word in [*words, "--out", tmp_path / "b"]]) == 0
    made = load_file(tmp_path / "b" / "checkpoints" / "last" / "pretrained_model" / "model.safetensors")
    assert all(
        torch.equal(made[name], weights[name]) for name in made if name.startswith(prefix)
    )  # the backbone is the loaded one
    (vlm / "model.safetensors").write_bytes((vlm / "model.safetensors").read_bytes()[:-100])
    with warnings.catch_warnings():
        code, line = command(*words, "--out", tmp_path / "c", capsys=capsys)
    assert code == 2 and "backbone weights cannot be read" in line


def test_resume_refuses_a_finished_run_a_folder_without_one_and_a_damaged_checkpoint(world, tmp_path, capsys):
    fine_tune(config(world, tmp_path / "run", steps=2, save_every=1))
    assert command("resume", tmp_path / "run", capsys=capsys)[1].endswith("pretrained_model")
    code, line = command("resume", tmp_path / "nothing", capsys=capsys)
    assert code == 2 and "no run of vla-train" in line
    status = tmp_path / "run" / "status.json"
    status.write_text(status.read_text().replace('"done"', '"interrupted"'))
    (tmp_path / "run" / "checkpoints" / "000002" / "training_state" / "optimizer_state.safetensors").write_bytes(
        b"torn"
    )
    code, line = command("resume", tmp_path / "run", capsys=capsys)
    assert code == 2 and "damaged" in line and "earlier checkpoint" in line


def test_an_existing_run_is_never_overwritten(world, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(TrainingError, match="not empty"):
        fine_tune(config(world, tmp_path / "run"))
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_status_and_smoke_work_from_the_command_line(world, tmp_path, capsys):
    words = [
        "smoke",
        "--checkpoint",
        world / "policy",
        "--dataset",
        world / "data",
        "--out",
        tmp_path / "run",
        "--device",
        "cpu",
        "--json",
    ]
    assert main([str(word) for word in words]) == 0
    captured = capsys.readouterr()
    last = json.loads(captured.out.splitlines()[-1])
    assert last["steps"] == 20 and np.isfinite(last["loss"]) and last["loss_after"] < last["loss_before"]
    assert "the loss fell: " in captured.err
    assert main(["status", str(tmp_path / "run"), "--json"]) == 0
    captured = capsys.readouterr()
    assert "state        done" in captured.err and json.loads(captured.out)["checkpoints"] == ["000020"]


def test_a_smoke_run_whose_loss_does_not_fall_says_so_and_exits_1(world, tmp_path, capsys):
    words = ["smoke", "--checkpoint", world / "policy", "--dataset", world / "data", "--out", tmp_path / "run"]
    words += ["--device", "cpu", "--steps", 2, "--lr", "1e-12", "--decay-lr", 0]
    assert main([str(word) for word in words]) == 1
    assert "the loss did not fall by 0.5% in 2 steps" in capsys.readouterr().err


def test_a_checkpoint_with_a_lost_tensor_is_refused(world, tmp_path):
    shutil.copytree(world / "policy", tmp_path / "policy")
    weights = load_file(tmp_path / "policy" / "model.safetensors")
    del weights["model.action_out_proj.weight"]
    save_file(weights, tmp_path / "policy" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"action_out_proj\.weight is missing"):
        fine_tune(config(world, tmp_path / "run", policy=str(tmp_path / "policy")))


# ---- sequences


def sequence_of(world: Path, output: Path, batch_size: int = 4) -> StageRun:
    plan = StagePlan(
        "two",
        (StageTask("one", str(world / "data"), 2, 2), StageTask("other", str(world / "more"), 2, 2)),
        (Stage("one", (1.0,), 1e-3, 0.5, 1, 10), Stage("other", (0.25, 0.75), 1e-3, 1.0, 1, 10)),
        SharedSettings(batch_size=batch_size, validate_every_epochs=9, held_out_fraction=0.3),
        PolicySettings(n_action_steps=2, num_steps=5),
    )
    return StageRun(
        plan,
        TrainConfig(str(world / "policy"), str(output), (), device="cpu", save_every=2, validation_frames=6),
        anchors=8,
    )


class Interrupting:
    """A reporter that stops the stage it is told to at its third step."""

    def __init__(self, title: str) -> None:
        self.title = title

    def __call__(self, first: int, steps: int, title: str, every: int) -> Any:
        return contextlib.nullcontext(interrupt_at(3) if title == self.title else silent)


def test_a_sequence_interrupted_in_its_second_stage_continues_to_the_same_matrix(world, tmp_path):
    whole = train_stages(sequence_of(world, tmp_path / "whole"), Interrupting("none"))
    with pytest.raises(KeyboardInterrupt):
        train_stages(sequence_of(world, tmp_path / "broken"), Interrupting("other"))
    broken = train_stages(sequence_of(world, tmp_path / "broken"), Interrupting("none"))
    assert whole.to_json() == broken.to_json() and np.isfinite(whole.losses).all()
    assert (tmp_path / "whole" / "transfer.md").read_bytes() == (tmp_path / "broken" / "transfer.md").read_bytes()
    with pytest.raises(TrainingError, match="started with another policy, stage file"):
        train_stages(sequence_of(world, tmp_path / "broken", batch_size=2), Interrupting("none"))
    second = json.loads((tmp_path / "whole" / "2_other" / "run.json").read_text())
    held = [task["held_out"] for task in json.loads((tmp_path / "whole" / "1_one" / "run.json").read_text())["data"]]
    assert [task["held_out"] for task in second["data"]][:1] == held  # fixed before stage 1
    assert [task["weight"] for task in second["data"]] == [0.25, 0.75] and second["craft"]["anchors"].endswith(
        "anchors_2"
    )
    policy = SmolVLAPolicy.from_pretrained(tmp_path / "whole" / "2_other" / "checkpoints" / "best" / "pretrained_model")
    start = SmolVLAPolicy.from_pretrained(tmp_path / "whole" / "start")
    assert (policy.config.n_action_steps, policy.config.num_steps) == (2, 5)
    assert np.array_equal(policy.settings.action.low, start.settings.action.low)  # one set of statistics for all stages


def test_data_that_disagree_with_the_stage_file_are_named(world, tmp_path):
    sequence = sequence_of(world, tmp_path / "run")
    tasks = (sequence.plan.tasks[0], replace(sequence.plan.tasks[1], action_dim=16))
    with pytest.raises(ConfigError, match="task other: action of .* has shape"):
        train_stages(replace(sequence, plan=replace(sequence.plan, tasks=tasks)), Interrupting("none"))
    with pytest.raises(ConfigError, match="chunk_size is 4, the stage file demands 50"):
        train_stages(
            replace(sequence, plan=replace(sequence.plan, policy=PolicySettings(chunk_size=50))), Interrupting("none")
        )
    assert not (tmp_path / "run").exists()


def test_an_instruction_longer_than_the_tokenizer_takes_is_told_before_training(world, tmp_path, capsys):
    write_data(
        tmp_path / "wordy",
        World(episodes=2, length=2, text="please go slowly and carefully to the {} square and stay there"),
    )
    words = [
        "fine-tune",
        "--checkpoint",
        world / "policy",
        "--dataset",
        tmp_path / "wordy",
        "--out",
        tmp_path / "run",
        "--steps",
        1,
        "--device",
        "cpu",
    ]
    assert main([str(word) for word in words]) == 0
    lines = capsys.readouterr().out.splitlines()
    told = [number for number, line in enumerate(lines) if "tokens, the policy reads 16" in line]
    assert told and told[0] < next(number for number, line in enumerate(lines) if line.startswith("done:"))


def test_tensorboard_gets_what_metrics_get(world, tmp_path):
    pytest.importorskip("tensorboard")
    fine_tune(config(world, tmp_path / "run", steps=1, save_every=1, trackers=("tensorboard",)))
    assert list((tmp_path / "run" / "tensorboard").glob("events.out.tfevents.*"))
