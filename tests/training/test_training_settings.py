# SPDX-License-Identifier: Apache-2.0
"""Every field of a run can be set: by file, by flag, by `--set`, by LeRobot's name; and each changes what it says."""

from __future__ import annotations

import csv
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from vla_edge.errors import ConfigError
from vla_edge.policies.smolvla.policy import SmolVLAPolicy
from vla_edge.training.batches import usual_workers
from vla_edge.training.command import main
from vla_edge.training.craft.anchors import AnchorCache, AnchorPlan, build_anchors
from vla_edge.training.lerobot_arguments import translate
from vla_edge.training.loop_inputs import assemble
from vla_edge.training.progress import live_line
from vla_edge.training.run_config import TaskData
from vla_edge.training.run_files import describe, read_metrics
from vla_edge.training.runs import fine_tune, resume
from vla_edge.training.sequential.phases import read_stages, with_plan_settings

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.training.training_world import interrupt_at, one_thread, two_steps

one_thread()


def test_flags_win_over_the_file_and_set_wins_over_flags(world, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "optimizer: {betas: [0.8, 0.9], eps: 1e-6, lr: 1e-3}\nlog_every: 1\nsteps: 3\ndelta: {vicreg_mu: 2}\n"
    )
    words = ["fine-tune", "--checkpoint", str(world / "policy"), "--dataset", str(world / "data")]
    words += ["--out", str(tmp_path / "run"), "--device", "cpu", "--batch-size", "2", "--workers", "0", "--no-save"]
    assert main([*words, "--config", str(file), "--lr", "2e-3", "--steps", "2", "--set", "optimizer.eps=1e-5"]) == 0
    written = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [written["optimizer"][name] for name in ("lr", "betas", "eps")] == [2e-3, [0.8, 0.9], 1e-5]
    assert written["steps"] == 2 and written["delta"]["vicreg_mu"] == 2.0 and len(read_metrics(tmp_path / "run")) == 2
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("optimizer.epss=1e-7", "did you mean 'eps'"),
        ("optimizer.eps=small", "must be a number"),
        ("steps", "write NAME=VALUE"),
        ("policy=x", "--checkpoint"),
        ("optimizer.betas=[0.9, 1.5]", "two numbers"),
    ],
)
def test_a_setting_that_does_not_fit_is_one_line(world, tmp_path, text, told):
    with pytest.raises(ConfigError, match=told):
        two_steps(world, tmp_path, text)


def test_the_noise_of_the_noise_target_is_refused_with_the_stale_one(world, tmp_path):
    with pytest.raises(ConfigError, match="--delta-target noise"):
        assemble(two_steps(world, tmp_path / "x", "delta.cls_noise_scale=0.5", kind="delta"))


def test_a_delta_expert_trains_without_a_cls_head(world, tmp_path):
    fine_tune(two_steps(world, tmp_path / "run", "delta.use_cls_head=false", kind="delta", batch_size=1))
    row = read_metrics(tmp_path / "run")[-1]
    assert "cls_loss" not in row and row["delta_loss"] > 0
    policy = SmolVLAPolicy.from_pretrained(tmp_path / "run" / "checkpoints" / "last" / "pretrained_model")
    assert policy.config.has_delta and not policy.config.use_cls_head and not policy.config.cls_trained


def test_crafts_multiplier_and_slack_stand_in_its_history(world, tmp_path):
    plan = AnchorPlan((TaskData("data", str(world / "data")),), 8)
    build_anchors(SmolVLAPolicy.from_pretrained(world / "policy"), plan, tmp_path / "anchors", torch.device("cpu"))
    texts = [f"craft.anchors={tmp_path / 'anchors'}", "craft.every=1", "craft.anchor_batch=2"]
    texts += ["craft.lambda_start=3", "craft.lambda_lr=0.5", "craft.epsilon_start=2", "craft.epsilon_end=2"]
    fine_tune(two_steps(world, tmp_path / "run", *texts, statistics="checkpoint", steps=3))
    with (tmp_path / "run" / "lambda_history.csv").open() as file:
        first, second = csv.DictReader(file)
    assert float(first["lambda"]) == 3 and float(first["epsilon"]) == 2
    assert float(second["lambda"]) == pytest.approx(3 + 0.5 * (float(first["retention_loss"]) - 2))


def test_anchors_hold_the_layers_that_are_asked_for(world, tmp_path, capsys):
    words = ["anchors", "--checkpoint", str(world / "policy"), "--dataset", str(world / "data"), "--count", "6"]
    assert main([*words, "--device", "cpu", "--out", str(tmp_path / "last"), "--layers", "-1"]) == 0
    meta = AnchorCache(tmp_path / "last").meta
    assert meta.layers == (-1,) and meta.features == ("expert.-1.mean", "expert.-1.last", "state", "velocity")
    texts = [f"craft.anchors={tmp_path / 'last'}", "craft.every=1"]
    fine_tune(two_steps(world, tmp_path / "run", *texts, statistics="checkpoint"))
    assert read_metrics(tmp_path / "run")[-1]["retention_loss"] > 0
    capsys.readouterr()
    for layers, told in ((["-3"], "the expert has 2 layers"), (["1"], "count from the end")):
        assert main([*words, "--device", "cpu", "--out", str(tmp_path / "none"), "--layers", *layers]) == 2
        assert told in capsys.readouterr().err


def test_loaders_are_used_by_default_where_pictures_are_decoded_all_along(world, tmp_path, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(16)))
    assert usual_workers(1000, 921_600, 512) == 4
    assert usual_workers(100, 921_600, 512) == 0, "everything decoded fits into memory"
    assert usual_workers(1000, 0, 512) == 0, "tokens are kept"
    many = {"workers": None, "cache_mb": 0}
    assert assemble(two_steps(world, tmp_path / "a", **many)).config.workers == 4
    assert assemble(two_steps(world, tmp_path / "a", **many, cache_vision=str(tmp_path / "tokens"))).config.workers == 0
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    assert usual_workers(1000, 921_600, 512) == 2
    assert main.parser("fine-tune").parse_args(["--checkpoint", "a", "--dataset", "b"]).workers is None


def test_lerobots_names_of_fields_without_a_flag_become_settings():
    words = ["--policy.optimizer_betas=[0.9,0.99]", "--wandb.project", "arms", "--save_checkpoint=false"]
    assert translate(words) == ["--set", "optimizer.betas=[0.9,0.99]", "--set", "wandb.project=arms", "--no-save"]


def test_without_a_terminal_there_is_a_line_per_log_every(capsys):
    with live_line(0, 5, "fine-tune", 2) as report:
        for step in range(1, 6):
            report(step, 0.5, 1e-4, 0.25)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"fine-tune: step {step} of 5" for step in (1, 2, 4, 5)]


def test_wandb_gets_project_entity_and_name_and_a_resumed_run_goes_on_in_the_same(world, tmp_path, monkeypatch):
    calls: list[dict[str, Any]] = []
    rows: list[int] = []

    class Session:
        def log(self, values: dict[str, float], step: int) -> None:
            rows.append(step)

        def finish(self) -> None:
            pass

    module = types.ModuleType("wandb")

    def init(**given: Any) -> Session:
        calls.append(given)
        return Session()

    module.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setattr("vla_edge.training.trackers.find_spec", lambda name: module)

    texts = ("wandb.project=arms", "wandb.entity=lab", "wandb.name=first")
    with pytest.raises(KeyboardInterrupt):
        fine_tune(two_steps(world, tmp_path / "run", *texts, trackers=("wandb",), steps=4), interrupt_at(3))
    resume(tmp_path / "run")
    assert [calls[0][name] for name in ("project", "entity", "name", "resume")] == ["arms", "lab", "first", "allow"]
    assert calls[0]["id"] == calls[1]["id"] and rows == [1, 2, 3, 4]


def test_a_scaled_schedule_is_said(world, tmp_path):
    notes = assemble(two_steps(world, tmp_path / "x", steps=300)).notes
    assert "the schedule is scaled to the run: warm-up 1000 → 10 steps, decay 30000 → 300" in notes


def test_settings_of_stages_go_to_the_plan_or_to_every_stage():
    plan, left = with_plan_settings(
        read_stages("kuavo"), ["shared.batch_size=4", "stages.weighing.epochs=1", "optimizer.eps=1e-7"]
    )
    assert plan.shared.batch_size == 4 and plan.stages[1].epochs == 1.0 and left == ("optimizer.eps=1e-7",)
    with pytest.raises(ConfigError, match="no stage 'x'"):
        with_plan_settings(plan, ["stages.x.epochs=1"])


def test_status_tells_sizes_device_and_the_newest_log_lines(world, tmp_path, capsys):
    fine_tune(two_steps(world, tmp_path / "run", steps=4))
    assert main(["status", str(tmp_path / "run" / "checkpoints" / "last"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [row["step"] for row in told["log"]] == [2, 3, 4] and told["checkpoint_bytes"] > 1e5
    lines = describe(tmp_path / "run").splitlines()
    logged = [line.split() for line in lines if line.startswith("log ")]
    assert [words[2] for words in logged] == ["2", "3", "4"] and "loss" in logged[0]
    assert any(line.startswith("checkpoints") and " MB)" in line for line in lines)
    assert any(line == f"device       cpu, {torch.get_num_threads()} threads" for line in lines)
