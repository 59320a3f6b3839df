# SPDX-License-Identifier: Apache-2.0
"""A delta expert's held-out error and target travel from training into checkpoint and bundle; runtime, doctor and gate
calibration refuse an expert that is worse than no correction, or that was taught something else."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from vla_edge.bundle import CorrectionSpec, open_bundle, write_manifest
from vla_edge.calibration.command import main as calibrate
from vla_edge.engines.engine import EngineOptions, load_engine
from vla_edge.errors import ConfigError
from vla_edge.export.command import main as export
from vla_edge.policies.smolvla.policy import SmolVLAPolicy
from vla_edge.runtime.inference.cache import CacheMode
from vla_edge.runtime.inference.scene_gate import GateSettings
from vla_edge.runtime.inference.session import PolicySession, SessionOptions
from vla_edge.training.loop_inputs import assemble
from vla_edge.training.objective import Objective
from vla_edge.training.run_config import OptimizerConfig, ScheduleConfig, TaskData, TrainConfig
from vla_edge.training.run_files import read_metrics
from vla_edge.training.runs import fine_tune
from vla_edge.training.validation import delta_error, validation_numbers
from vla_edge.trials.deploy_check import FAILED, PASSED, check_deployment

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.training.training_world import World, one_thread, write_data, write_policy

one_thread()
PRETRAINED = "checkpoints/last/pretrained_model"
HELD_OUT = (3,)
GATE = GateSettings("pooled", 0.5, 100.0, 100.0, 10, 100.0, 1.0)


def config(root: Path, out: Path, **changes: Any) -> TrainConfig:
    data = (TaskData("data", str(root / "data"), held_out=HELD_OUT),)
    values: dict[str, Any] = {"steps": 6, "batch_size": 8, "save_every": 3, "validation_frames": 12} | changes
    schedule = ScheduleConfig(1, values["steps"], 1e-4)
    optimizer = OptimizerConfig(lr=1e-3)
    return TrainConfig(
        str(root / "policy"), str(out), data, "delta", device="cpu", optimizer=optimizer, schedule=schedule, **values
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """policy/, data/, a delta run/ of it without a CLS head, and bundle/."""
    root = tmp_path_factory.mktemp("delta")
    write_policy(root / "policy", chunk_size=6, n_action_steps=4, num_steps=2)
    write_data(root / "data", World(episodes=4, length=8))
    run = config(root, root / "run", validate_every=3)
    fine_tune(replace(run, delta=replace(run.delta, use_cls_head=False)))
    assert (
        export(["--checkpoint", str(root / "run" / PRETRAINED), "--out", str(root / "bundle"), "--threads", "1"]) == 0
    )
    return root


def with_correction(bundle: Path, target: Path, correction: CorrectionSpec | None) -> Path:
    shutil.copytree(bundle, target)
    write_manifest(target, replace(open_bundle(bundle).manifest, correction=correction))
    return target


def test_the_held_out_error_is_measured_anew_at_each_checkpoint_and_stands_in_checkpoint_and_bundle(
    world: Path,
) -> None:
    kept = SmolVLAPolicy.from_pretrained(world / "run" / PRETRAINED).config
    assert kept.delta_target == "stale" and kept.delta_relative_error is not None
    assert open_bundle(world / "bundle").manifest.correction == CorrectionSpec("stale", kept.delta_relative_error)
    rows = [row["validation_delta_relative"] for row in read_metrics(world / "run") if "validation" in row]
    assert len(rows) == 2 and rows[0] != rows[1] == kept.delta_relative_error

    trained = replace(config(world, world / "x"), policy=str(world / "run" / PRETRAINED))
    setup = assemble(replace(trained, delta=replace(trained.delta, use_cls_head=False)))
    objective = Objective(setup.policy, False)
    device = torch.device("cpu")
    again = validation_numbers(objective, setup.validation, 12, 8, device)
    assert delta_error(again) == pytest.approx(kept.delta_relative_error, rel=1e-6)


def test_a_task_of_few_frames_is_looked_at_until_there_are_enough(world: Path) -> None:
    setup = assemble(config(world, world / "x"))
    frames, device = len(setup.validation[0]), torch.device("cpu")
    objective = Objective(setup.policy, False)
    once, thrice = (validation_numbers(objective, setup.validation, n, 8, device) for n in (frames, 3 * frames))
    assert thrice["data"]["steps"] > 2 * once["data"]["steps"] and thrice["data"]["loss"] != once["data"]["loss"]


def test_training_the_policy_itself_forgets_what_its_delta_expert_was_measured_at(world: Path, tmp_path: Path) -> None:
    base = replace(config(world, tmp_path / "run"), policy=str(world / "run" / PRETRAINED), kind="base", steps=1)
    fine_tune(base)
    again = SmolVLAPolicy.from_pretrained(tmp_path / "run" / PRETRAINED).config
    assert again.has_delta and again.delta_relative_error is None


def test_without_held_out_episodes_nothing_is_claimed(world: Path, tmp_path: Path) -> None:
    plain = config(world, tmp_path / "run", steps=1)
    setup, _ = fine_tune(replace(plain, data=(TaskData("data", str(world / "data")),)))
    assert any("no episode is held out" in note for note in setup.notes)
    assert SmolVLAPolicy.from_pretrained(tmp_path / "run" / PRETRAINED).config.delta_relative_error is None


@pytest.mark.parametrize(
    ("correction", "told"),
    [
        (CorrectionSpec("stale", 1.0), "held-out error is 1.00 of that of no correction"),
        (CorrectionSpec("stale", float("nan")), "never measured"),
        (CorrectionSpec("noise", 0.5), "taught to take away noise"),
        (CorrectionSpec("stale", None), "never measured"),
        (None, "never measured"),
    ],
)
def test_an_expert_that_does_not_help_is_refused_by_runtime_doctor_and_gate_in_one_line(
    world: Path, tmp_path: Path, correction: CorrectionSpec | None, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = with_correction(world / "bundle", tmp_path / "bundle", correction)
    engine = load_engine("ort", EngineOptions(threads=1))
    with pytest.raises(ConfigError, match=told) as refused:
        PolicySession(open_bundle(bundle), engine, SessionOptions(CacheMode.DELTA, gate=GATE))
    assert "\n" not in str(refused.value) and "vla-train fine-tune --kind delta" in str(refused.value)
    PolicySession(open_bundle(bundle), engine, SessionOptions(CacheMode.GATED, gate=GATE))
    item = next(item for item in check_deployment(bundle, None, "red", 10.0, 1) if item.name == "delta expert")
    assert item.state == FAILED and told in item.found and "--cache still" in item.fix
    line = gate_line(bundle, world / "data", tmp_path / "gated", capsys)
    assert line.startswith("correction   not measured: ") and told in line
    assert open_bundle(tmp_path / "gated").manifest.why_not_delta


def gate_line(bundle: Path, data: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What `vla-calibrate gate` says of the delta expert, under limits that let everything be used again."""
    words = ["gate", "--bundle", bundle, "--dataset", data, "--out", out, "--threads", 1, "--bound", 0.99]
    assert calibrate([str(word) for word in [*words, "--references", 4, "--lags", 3, "--period-s", 0.1]]) == 0
    return next(line for line in capsys.readouterr().out.splitlines() if line.startswith("correction"))


def test_one_that_helps_runs_and_the_gate_measures_it_on_the_arms_own_episodes(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = with_correction(world / "bundle", tmp_path / "bundle", CorrectionSpec("stale", 0.5))
    data = write_data(tmp_path / "data", World(episodes=4, length=8, named=("red",)))  # one instruction all along
    line = gate_line(bundle, data, tmp_path / "gated", capsys)
    manifest = open_bundle(tmp_path / "gated").manifest
    ratio = manifest.gate["replay"]["delta"]["error_of_uncorrected"]
    assert line.startswith(f"correction   corrected chunks have {ratio:.2f} of the error of uncorrected ones")
    assert manifest.correction is not None and manifest.correction.relative_error == pytest.approx(
        max(0.5, ratio), abs=1e-4
    )
    assert bool(manifest.why_not_delta) == (ratio >= 1) == ("--cache delta refuses it" in line)
    item = next(item for item in check_deployment(bundle, None, "red", 10.0, 1) if item.name == "delta expert")
    assert item.state == PASSED and "0.50 of the error" in item.found
