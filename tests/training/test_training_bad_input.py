# SPDX-License-Identifier: Apache-2.0
"""What a stranger types wrong, and what stops a run from outside: one line, exit code 2, nothing half-made, a true
status."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from tests.training.training_world import CAMERA, World, one_thread, write_data, write_policy

from vla_edge.errors import TrainingError
from vla_edge.export.command import main as export
from vla_edge.files import write_json
from vla_edge.training import start
from vla_edge.training.command import main
from vla_edge.training.processes import make_accelerator
from vla_edge.training.run_config import TaskData, TrainConfig
from vla_edge.training.run_files import Status, describe, read_metrics, read_status, write_status
from vla_edge.training.runs import fine_tune as train_directly

one_thread()


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("world")
    write_policy(root / "policy")
    write_policy(root / "other_policy", seed=5)
    write_data(root / "data", World(episodes=4, length=5))
    write_data(root / "more", World(episodes=4, length=5, seed=3))
    return root


def command(*words: object, capsys) -> tuple[int, str]:
    """Exit code and the one line on stderr (the progress bar's lines left out)."""
    code = main([str(word) for word in words])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip() and "s/step" not in line]
    assert len(lines) <= 1, lines
    return code, lines[0] if lines else ""


def fine_tune(world: Path, output: Path, *words: object) -> list[object]:
    return [
        "fine-tune",
        "--checkpoint",
        world / "policy",
        "--dataset",
        world / "data",
        "--steps",
        2,
        "--batch-size",
        2,
        "--validation-frames",
        8,
        "--device",
        "cpu",
        "--out",
        output,
        *words,
    ]


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("--weight-decay=-1", "--weight-decay: '-1' is not"),
        ("--weight-decay=nan", "--weight-decay: 'nan' is not"),
        ("--lr=inf", "--lr: 'inf' is not"),
        ("--grad-clip=0", "--grad-clip: '0' is not"),
        ("--warmup=-1", "--warmup: '-1' is not"),
        ("--decay=0", "--decay: '0' is not"),
        ("--decay-lr=nan", "--decay-lr: 'nan' is not"),
        ("--decay-lr=1", "above the learning rate"),
        ("--seed=-1", "--seed: '-1' is not"),
        ("--workers=-1", "--workers: '-1' is not"),
        ("--keep=-1", "--keep: '-1' is not"),
        ("--validate-every=-1", "--validate-every: '-1' is not"),
        ("--lora-rank=-1", "--lora-rank: '-1' is not"),
        ("--lora-dropout=1.5", "--lora-dropout: '1.5' is not"),
        ("--lora-targets=(", "no regular expression"),
        ("--augment=7", "must be 0 to 6"),
        ("--craft-lambda=-1", "--craft-lambda: '-1' is not"),
        ("--held-out=1", "held-out share 1.0"),
        ("--held-out=nan", "--held-out: 'nan' is not"),
        ("--episodes=0-", "'0-' is not understood"),
        ("--track=wandb", "tracker wandb"),
        ("--set=kind=delta", "kind delta is given by"),
        ("--set=image_size=[10,10]", "--set image_size) to a square such as [64,64]"),
        (f"--cache-vision={__file__}", "is a file; name a folder"),
        (f"--cache-prefix={__file__}/below", "is a file"),
        (f"--out={__file__}", "is a file; name a folder"),
    ],
)
def test_a_wrong_value_is_named_before_anything_is_written(world, tmp_path, capsys, flag, told):
    code, line = command(*fine_tune(world, tmp_path / "run", "--held-out=0.3", flag), capsys=capsys)
    assert code == 2 and told in line, line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        *((f"delta.{name}=-1", f"{name} is -1.0, must be 0 or more") for name in ("vicreg_weight", "vicreg_mu")),
        ("delta.cls_similarity_threshold=2", "must be -1 to 1"),
        ("delta.num_cls_prefix=3", "set both alike"),
    ],
)
def test_a_number_of_the_cls_head_that_means_nothing_is_refused(world, tmp_path, capsys, setting, told):
    code, line = command(*fine_tune(world, tmp_path / "run", "--kind=delta", "--set", setting), capsys=capsys)
    assert code == 2 and told in line, line
    assert not (tmp_path / "run").exists()


def test_the_flow_steps_of_a_distilled_policy_are_given_once(world, tmp_path, capsys):
    words = ["distill", *fine_tune(world, tmp_path / "run", "--flow-steps", 1)[1:], "--set", "num_steps=4"]
    code, line = command(*words, capsys=capsys)
    assert code == 2 and "num_steps is given by --flow-steps 1" in line and not (tmp_path / "run").exists()


def test_a_joint_that_is_no_number_is_named_with_episode_and_frame_where_it_is_used(world, tmp_path, capsys):
    shutil.copytree(world / "data", tmp_path / "data")
    (file,) = (tmp_path / "data" / "data").rglob("*.parquet")
    table = pq.read_table(file)
    values = table.column("action").to_pylist()
    values[7] = [float("nan"), 0.0]
    place = table.schema.get_field_index("action")
    pq.write_table(
        table.set_column(place, table.schema.field("action"), pa.array(values, table.schema.field(place).type)), file
    )
    words = elsewhere(world, tmp_path, "data")
    code, line = command(*words, capsys=capsys)
    assert code == 2 and "action of frame 2 in episode 1 is not finite (1 such frames)" in line
    assert f"`vla-data delete {tmp_path / 'data'} --episodes 1 --out NEW`" in line
    stages = stage_file(tmp_path, world, tasks__1__dataset=str(tmp_path / "data"))
    words_of_stages = ["stages", stages, "--checkpoint", world / "policy", "--out", tmp_path / "out", "--device", "cpu"]
    assert "in episode 1 is not finite" in command(*words_of_stages, capsys=capsys)[1]
    assert not (tmp_path / "run").exists() and not (tmp_path / "out").exists()
    assert main([str(word) for word in [*words, "--episodes", "0,2,3", "--no-save"]]) == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "no run of vla-train (run.json is missing); give the folder that --out named"),
        (["--steps", "9"], "there is no option --steps; see"),
    ],
)
def test_what_is_no_run_is_not_resumed(world, capsys, words, told):
    code, line = command("resume", world / "data", *words, capsys=capsys)
    assert code == 2 and told in line


def test_an_older_checkpoint_is_not_resumed_in_the_newest_ones_place(world, tmp_path, capsys):
    assert main([str(word) for word in fine_tune(world, tmp_path / "run", "--save-every", 1)]) == 0
    capsys.readouterr()
    run = tmp_path / "run"
    for word in ("resume", "status"):
        code, line = command(word, run / "checkpoints" / "000001", capsys=capsys)
        assert code == 2 and f"not the run's newest checkpoint; give the run, {run}" in line
    assert "done already" in command("resume", run / "checkpoints" / "000002", capsys=capsys)[1]
    code, line = command(*fine_tune(world, run), capsys=capsys)
    assert code == 2 and f"`vla-train resume {run}`" in line


def test_a_folder_of_other_things_is_not_said_to_be_removable(world, capsys):
    code, line = command(*fine_tune(world, world / "data"), capsys=capsys)
    assert code == 2 and line.endswith("choose another --out")


def test_a_low_rate_and_its_lowest_may_be_given_together(world, tmp_path, capsys):
    assert main([str(word) for word in fine_tune(world, tmp_path / "run", "--lr=1e-6", "--decay-lr=1e-7")]) == 0
    code, line = command(
        *fine_tune(world, tmp_path / "more", "--lr=1e-6"), capsys=capsys
    )  # the default lowest is 2.5e-6
    assert code == 2 and "lower --decay-lr" in line


def test_validation_on_a_dataset_of_one_episode_is_refused(world, tmp_path, capsys):
    code, line = command(
        *fine_tune(world, tmp_path / "run", "--episodes=1", "--held-out=0.5", "--validate-every=1"), capsys=capsys
    )
    assert code == 2 and "two episodes or more" in line


def test_without_a_validated_task_that_counts_no_step_is_the_best(world, tmp_path):
    """Only the task of share 0 holds episodes out: the mean under the shares is no number, and the first step is not
    the best."""
    data = (TaskData("data", str(world / "data"), 0.0, held_out=(0,)), TaskData("more", str(world / "more")))
    config = TrainConfig(
        str(world / "policy"),
        str(tmp_path / "run"),
        data,
        steps=2,
        batch_size=2,
        save_every=2,
        validate_every=1,
        validation_frames=8,
        log_every=1,
        device="cpu",
    )
    _, outcome = train_directly(config)
    assert outcome.best_step is None and not (tmp_path / "run" / "checkpoints" / "best").exists()
    rows = read_metrics(tmp_path / "run")
    assert all("validation" not in row and np.isfinite(row["validation/data"]) for row in rows) and len(rows) == 2


def test_a_smoke_run_holds_out_some_of_the_episodes_it_reads(world, tmp_path):
    """Held out of all 40 episodes, none might be among the ten that a smoke run reads."""
    write_data(tmp_path / "forty", World(episodes=40, length=1))
    words = [
        "smoke",
        "--checkpoint",
        world / "policy",
        "--dataset",
        tmp_path / "forty",
        "--held-out=0.03",
        "--validate-every=1",
        "--steps=1",
        "--device=cpu",
        "--out",
        tmp_path / "run",
    ]
    assert main([str(word) for word in words]) in (0, 1)  # one step may or may not show in the loss
    task = json.loads((tmp_path / "run" / "run.json").read_text())["data"][0]
    assert task["episodes"] == list(range(10)) and len(task["held_out"]) == 1 and task["held_out"][0] < 10
    assert read_status(tmp_path / "run").best_loss is not None


@pytest.mark.parametrize("flag", ["--out", "--checkpoint"])
def test_a_path_through_a_file_is_one_line(world, tmp_path, capsys, flag):
    file = world / "policy" / "config.json"
    for path in (file, file / "below")[flag == "--checkpoint" :]:  # a file of the policy leads to it
        code, line = command(*fine_tune(world, tmp_path / "run", flag, path), capsys=capsys)
        assert code == 2 and "config.json" in line
    code, line = command("status", file, capsys=capsys)
    assert code == 2 and "config.json" in line


def test_a_folder_left_by_a_run_without_checkpoints_is_not_recommended_for_resuming(world, tmp_path, capsys):
    write_status(tmp_path, Status("failed", 0, 2))
    write_json(tmp_path / "run.json", {})
    code, line = command(*fine_tune(world, tmp_path), capsys=capsys)
    assert code == 2 and "holds no checkpoint" in line and "resume" not in line
    assert main(["status", str(tmp_path)]) == 1
    assert capsys.readouterr().err.endswith("it failed; no checkpoint yet: start it again\n")


# ---- stopped from outside


def stop_at(step: int, what: signal.Signals):
    """A reporter that sends this process a signal after `step` optimiser steps."""

    def report(done: int, loss: float, lr: float, seconds_per_step: float) -> None:
        if done == step:
            os.kill(os.getpid(), what)

    return lambda first, steps, title, every: contextlib.nullcontext(report)


@pytest.mark.parametrize("what", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_says_interrupted_and_continues(world, tmp_path, capsys, monkeypatch, what):
    before = signal.getsignal(signal.SIGTERM)
    words = fine_tune(world, tmp_path / "run", "--steps=4", "--save-every=2", "--log-every=1")
    with monkeypatch.context() as changed:
        changed.setattr(start, "reporter", stop_at(3, what))
        assert command(*words, capsys=capsys) == (130, "interrupted")
    assert signal.getsignal(signal.SIGTERM) is before
    assert read_status(tmp_path / "run").state == "interrupted"
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["000002", "last"]
    assert main(["resume", str(tmp_path / "run")]) == 0
    assert "state        done" in describe(tmp_path / "run") and [
        row["step"] for row in read_metrics(tmp_path / "run")
    ] == [1, 2, 3, 4]


def test_a_killed_run_is_told_by_status_and_one_that_lives_is_not_resumed_twice(world, tmp_path, capsys):
    assert main([str(word) for word in fine_tune(world, tmp_path, "--save-every=1")]) == 0
    status = json.loads((tmp_path / "status.json").read_text()) | {"state": "running", "step": 1}
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    write_json(tmp_path / "status.json", status | {"process": other.pid})
    assert "state        running\n" in describe(tmp_path)
    code, line = command("resume", tmp_path, capsys=capsys)
    assert code == 2 and f"process {other.pid} is training it now" in line
    other.communicate(b"\n")
    (tmp_path / "checkpoints" / ".000002.77.partial" / "pretrained_model").mkdir(parents=True)
    (tmp_path / "checkpoints" / ".last.77.partial").symlink_to("000002")
    assert f"process {other.pid} was killed; continue with `vla-train resume`" in describe(tmp_path)
    assert main(["status", str(tmp_path), "--json"]) == 1
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["state"] == "killed" and told["error"].endswith(f"continue with `vla-train resume {tmp_path}`")
    # killed after the last checkpoint and before "done": nothing is left to train, and the numbers are the logged ones
    assert main(["resume", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["loss"] == read_metrics(tmp_path)[-1]["loss"]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["000001", "000002", "last"]
    assert read_status(tmp_path).state == "done"


@pytest.mark.parametrize("begun", ["before", "after"])
def test_loader_processes_end_with_a_killed_trainer(begun):
    """The loader holds the pipe that this test reads: it is read to its end only when both processes are gone."""
    wait = "while os.getppid() == multiprocessing.parent_process().pid: time.sleep(0.01)\n" if begun == "after" else ""
    loader = (
        "import multiprocessing, os, time\nfrom vla_edge.training.batches import end_with_parent\n"
        f"print('up', flush=True)\n{wait}end_with_parent(0)\ntime.sleep(600)"
    )
    trainer = f"from multiprocessing import get_context\nget_context('spawn').Pool(1).apply(exec, ({loader!r},))"
    with subprocess.Popen([sys.executable, "-c", trainer], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "up\n"
        process.kill()
        process.communicate(timeout=300)  # 600 s without the watch


def test_a_damaged_status_does_not_keep_a_run_from_being_resumed(world, tmp_path, capsys, monkeypatch):
    with monkeypatch.context() as changed:
        changed.setattr(start, "reporter", stop_at(1, signal.SIGINT))
        assert main([str(word) for word in fine_tune(world, tmp_path, "--save-every=1", "--steps=3")]) == 130
    # interrupted inside step 1, before its checkpoint: the run starts again
    capsys.readouterr()
    assert "no checkpoint to go on from" in command("resume", tmp_path, capsys=capsys)[1]
    with monkeypatch.context() as changed:
        changed.setattr(start, "reporter", stop_at(2, signal.SIGINT))
        assert main([str(word) for word in fine_tune(world, tmp_path / "run", "--save-every=1", "--steps=3")]) == 130
    (tmp_path / "run" / "status.json").write_text("")
    assert main(["resume", str(tmp_path / "run")]) == 0
    assert read_status(tmp_path / "run").state == "done"


def test_the_best_link_is_mended_when_the_run_was_killed_before_it_was_moved(world, tmp_path):
    words = fine_tune(world, tmp_path, "--save-every=1", "--held-out=0.3", "--validate-every=1")
    assert main([str(word) for word in words]) == 0
    best = tmp_path / "checkpoints" / "best"
    best.unlink()
    status = json.loads((tmp_path / "status.json").read_text())
    write_json(tmp_path / "status.json", status | {"state": "running", "process": 2**22 + 1})
    step = status["best_step"]
    (tmp_path / "checkpoints" / "last").unlink()
    (tmp_path / "checkpoints" / "last").symlink_to(f"{step:06d}")
    assert main(["resume", str(tmp_path)]) == 0
    assert best.exists()


@pytest.mark.parametrize("kind", ["base", "delta"])
def test_a_resumed_run_that_keeps_one_checkpoint_outlives_the_one_it_was_resumed_from(
    world, tmp_path, monkeypatch, kind
):
    """The backbone's and tokenizer's files of every checkpoint are copied from where the policy was read, which is
    pruned."""
    words = fine_tune(world, tmp_path, "--kind", kind, "--steps=4", "--save-every=1", "--keep=1", "--batch-size=4")
    words += ["--delta-target", "noise"]  # chunks of one action: nothing of an older one is left to correct
    with monkeypatch.context() as changed:
        changed.setattr(start, "reporter", stop_at(2, signal.SIGINT))
        assert main([str(word) for word in words]) == 130
    assert main(["resume", str(tmp_path)]) == 0
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["000004", "last"]
    saved = tmp_path / "checkpoints" / "last" / "pretrained_model"
    for file in (world / "policy" / "vlm").iterdir():
        assert (saved / "vlm" / file.name).read_bytes() == file.read_bytes()


def test_a_file_larger_than_allowed_is_one_line_and_keeps_the_last_checkpoint(world, tmp_path, capsys):
    assert main([str(word) for word in fine_tune(world, tmp_path / "run", "--steps=1")]) == 0
    capsys.readouterr()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        code, line = command(*fine_tune(world, tmp_path / "small"), capsys=capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 2 and ("File too large" in line and "ulimit -f" in line), line
    assert read_status(tmp_path / "small").state == "failed"
    assert not list((tmp_path / "small" / "checkpoints").iterdir())


# ---- stage files


def stage_file(folder: Path, world: Path, **changes: Any) -> Path:
    """Two stages; `changes`: dotted path with `__` → value."""
    stage = {"lr": 1e-3, "epochs": 1, "warmup_steps": 1, "decay_steps": 10}
    content: dict[str, Any] = {
        "name": "two",
        "tasks": [
            {"name": name, "dataset": str(world / name), "action_dim": 2, "state_dim": 2} for name in ("data", "more")
        ],
        "stages": [{"name": "one", "mix": [1.0], **stage}, {"name": "two", "mix": [0.3, 0.7], **stage}],
        "shared": {"batch_size": 4, "held_out_fraction": 0.25},
    }
    for path, value in changes.items():
        *outer, last = [int(part) if part.isdigit() else part for part in path.split("__")]
        place: Any = content
        for part in outer:
            place = place[part]
        place[last] = value
    file = folder / "stages.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("stages__0__name", "../../out", "names become folders"),
        ("stages__0__name", "two", "same name"),
        ("tasks__0__name", "", "names become folders"),
        ("stages__1__warmup_steps", -1, r"stage 2 (two): warmup_steps"),
        ("stages__1__decay_steps", 0, r"stage 2 (two): decay_steps"),
        ("stages__0__epochs", float("inf"), "epochs above 0"),
        ("stages__0__epochs", float("nan"), "epochs above 0"),
        ("stages__0__lr", float("nan"), "lr above 0"),
        ("stages__0__lr", 1e-9, "not below decay_lr"),
        ("shared__batch_size", 0, "batch_size is 0"),
        ("shared__validate_every_epochs", -1, "validate_every_epochs -1"),
        ("shared__optimizer", {"betas": [0.9]}, "betas"),
    ],
)
def test_a_wrong_stage_file_leaves_nothing(world, tmp_path, capsys, path, value, told):
    file = stage_file(tmp_path, world, **{path: value})
    code, line = command(
        "stages", file, "--checkpoint", world / "policy", "--out", tmp_path / "out", "--device", "cpu", capsys=capsys
    )
    assert code == 2 and told in line, line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--anchors=99"], "--anchors 99: the tasks before stage two have 15 frames"),
        (["--anchors=4", "--anchor-layers=7"], "count from the end"),
        (["--anchors=4", "--anchor-layers=-9"], "the expert has 2 layers"),
        (["--set=kind=delta"], "stages train the policy itself"),
        (["--set=craft.anchors=a"], "give their number with --anchors"),
        (["--set=optimizer.epss=1"], "did you mean 'eps'"),
    ],
)
def test_what_a_later_stage_would_refuse_is_refused_before_the_first(world, tmp_path, capsys, words, told):
    place = ["--checkpoint", world / "policy", "--out", tmp_path / "out", "--device", "cpu"]
    code, line = command("stages", stage_file(tmp_path, world), *place, *words, capsys=capsys)
    assert code == 2 and told in line, line
    assert not (tmp_path / "out").exists()


def test_a_dry_run_reads_and_shows_the_settings_of_every_stage(world, tmp_path, capsys):
    file = stage_file(tmp_path, world)
    words = ["stages", str(file), "--dry-run", "--set", "steps=5", "--set", "shared.batch_size=2"]
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["settings"] == ["steps=5"] and told["plan"]["shared"]["batch_size"] == 2 and not told["missing"]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "batch 2," in told and "  every stage: steps=5\n" in told
    for text in ("stages=1", "policy=1", "stepz=1"):
        assert command("stages", file, "--dry-run", "--set", text, capsys=capsys)[0] == 2


def test_a_stage_file_that_is_no_text_is_one_line(tmp_path, capsys):
    (tmp_path / "stages.yaml").write_bytes(b"name: \xff\xfe")
    code, line = command("stages", tmp_path / "stages.yaml", "--dry-run", capsys=capsys)
    assert code == 2 and "not valid YAML" in line
    assert command("stages", tmp_path, "--dry-run", capsys=capsys)[0] == 2


def test_a_sequence_is_not_continued_from_another_policy_or_in_another_precision(world, tmp_path, capsys):
    words = [
        "stages",
        stage_file(tmp_path, world, stages__0__epochs=0.2, stages__1__epochs=0.2),
        "--set",
        "validation_frames=8",
        "--out",
        tmp_path / "out",
        "--device",
        "cpu",
    ]
    assert main([str(word) for word in [*words, "--checkpoint", world / "policy"]]) == 0
    capsys.readouterr()
    for change in (["--checkpoint", world / "other_policy"], ["--checkpoint", world / "policy", "--precision", "bf16"]):
        code, line = command(*words, *change, capsys=capsys)
        assert code == 2 and "started with another policy" in line
    assert main([str(word) for word in [*words, "--checkpoint", world / "policy"]]) == 0


def test_no_anchors_or_fewer_are_refused(world, tmp_path, capsys):
    words = [
        "anchors",
        "--checkpoint",
        world / "policy",
        "--dataset",
        world / "data",
        "--out",
        tmp_path / "anchors",
        "--device",
        "cpu",
    ]
    for count in (0, -1):
        code, line = command(*words, f"--count={count}", capsys=capsys)
        assert code == 2 and f"--count: '{count}' is not" in line
    code, line = command(
        "stages",
        stage_file(tmp_path, world),
        "--checkpoint",
        world / "policy",
        "--out",
        tmp_path / "out",
        "--anchors=-1",
        capsys=capsys,
    )
    assert code == 2 and "--anchors: '-1' is not" in line


# ---- data that LeRobot trains on


def elsewhere(world: Path, folder: Path, name: str) -> list[object]:
    """A fine-tuning run in `folder` whose data or policy (`name`) lies there too."""
    return [folder / name if word == world / name else word for word in fine_tune(world, folder / "run")]


def test_statistics_that_cannot_be_the_datas_are_named_with_joint_and_remedy_before_the_first_step(
    world, tmp_path, capsys
):
    """LeRobot's float32 recorder writes a standard deviation of 0 for a joint that rests."""
    shutil.copytree(world / "data", tmp_path / "data")
    file = tmp_path / "data" / "meta" / "stats.json"
    content = json.loads(file.read_text())
    content["observation.state"]["std"][1] = 0.0
    file.write_text(json.dumps(content))
    code, line = command(*elsewhere(world, tmp_path, "data"), capsys=capsys)
    assert code == 2 and "observation.state joint_1 has a spread of 1e-08" in line
    assert "vla-data stats" in line and "--write" in line and not (tmp_path / "run").exists()


def test_an_empty_instruction_is_named_with_dataset_episode_and_remedy(world, tmp_path, capsys):
    shutil.copytree(world / "data", tmp_path / "data")
    file = tmp_path / "data" / "meta" / "tasks.parquet"
    table = pq.read_table(file)
    texts = ["", *table.column("__index_level_0__").to_pylist()[1:]]
    table = table.set_column(1, table.schema.field("__index_level_0__"), pa.array(texts, pa.large_string()))
    pq.write_table(table, file)
    code, line = command(*elsewhere(world, tmp_path, "data"), capsys=capsys)
    assert code == 2 and "has an empty instruction" in line and "episode" in line and '--rename "" TEXT' in line


def test_a_camera_that_the_data_lack_is_masked_as_long_as_there_is_one(world, tmp_path, capsys):
    """config.json of a fine-tune of smolvla_base declares three cameras whatever the data have."""
    shutil.copytree(world / "policy", tmp_path / "policy")
    file = tmp_path / "policy" / "config.json"
    content = json.loads(file.read_text())
    content["input_features"]["observation.images.camera3"] = {"type": "VISUAL", "shape": [3, 256, 256]}
    file.write_text(json.dumps(content))
    words = elsewhere(world, tmp_path, "policy")
    assert main([str(word) for word in words]) == 0
    assert "observation.images.camera3 is not in the data" in capsys.readouterr().out
    both = ["--camera", f"observation.images.camera3={CAMERA}"]
    words[words.index(tmp_path / "run")] = tmp_path / "second"
    code, line = command(*words, *both, capsys=capsys)
    assert code == 2 and f"gives {CAMERA} to both" in line


def test_a_run_whose_data_were_moved_goes_on_from_where_they_are(world, tmp_path, capsys):
    shutil.copytree(world / "data", tmp_path / "data")
    assert main([str(word) for word in (*elsewhere(world, tmp_path, "data"), "--save-every", 1)]) == 0
    last = tmp_path / "run" / "checkpoints" / "last"
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "000002")
    last.unlink()
    last.symlink_to("000001")
    (tmp_path / "data").rename(tmp_path / "moved")
    capsys.readouterr()
    code, line = command("resume", last, capsys=capsys)
    assert code == 2 and str(tmp_path / "data") in line and "say where they lie now with --dataset PATH" in line
    twice = ("--dataset", tmp_path / "moved")
    code, line = command("resume", last, *twice, *twice, capsys=capsys)
    assert code == 2 and "given 2 times, the run has 1: data" in line
    assert main(["resume", str(last), "--dataset", str(tmp_path / "moved")]) == 0
    assert last.readlink() == Path("000002")


# ---- evaluating and comparing


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["evaluate", "{p}", "--seed=-1"], "--seed: '-1' is not"),
        (["evaluate", "{p}", "--threads=-1"], "--threads: '-1' is not"),
        (["evaluate", "{p}", "--out=/proc/none/x.npz"], "cannot be made"),
        (["evaluate", "{p}", "--out={t}/x.txt"], "ends in .npz"),
        (["compare", "{p}", "--timed=0"], "--timed: '0' is not"),
        (["compare", "{p}", "--png={t}"], "is a folder; name a file"),
        (["compare", "{p}", "--markdown=/proc/none/x.md"], "cannot be made"),
        (["cls-report", "{p}", "--stride=0"], "--stride: '0' is not"),
        (["cls-report", "{p}", "--threshold=nan"], "--threshold: 'nan' is not"),
    ],
)
def test_what_cannot_be_evaluated_is_told_before_any_work(world, tmp_path, capsys, words, told):
    words = [word.format(p=world / "policy", t=tmp_path) for word in words]
    code, line = command(*words, "--dataset", world / "data", capsys=capsys)
    assert code == 2 and told in line, line


def test_flow_steps_decide_what_is_predicted_and_stand_in_the_table(world, tmp_path, capsys):
    data = ["--dataset", world / "data", "--episodes", 0]

    def errors(*words: object) -> dict[str, Any]:
        assert main([str(word) for word in ("evaluate", *words, *data, "--json")]) == 0
        return json.loads(capsys.readouterr().out)

    plain, one = errors(world / "policy"), errors(world / "policy", "--flow-steps", 1, "--out", tmp_path / "one.npz")
    assert plain["policy"] != one["policy"] == errors(tmp_path / "one.npz", "--flow-steps", 1)["policy"]
    assert plain == errors(world / "policy", "--flow-steps", 10)
    assert export(["--checkpoint", str(world / "policy"), "--out", str(tmp_path / "bundle"), "--threads", "1"]) == 0
    words = ["compare", world / "policy", tmp_path / "bundle", tmp_path / "one.npz", "--flow-steps", 2, "--timed", 1]
    assert main([str(word) for word in (*words, *data, "--markdown", tmp_path / "table.md")]) == 0
    rows = [line.strip("|").split("|") for line in (tmp_path / "table.md").read_text().splitlines()]
    told = {name.strip(): [cell.strip() for cell in cells] for name, *cells in rows}
    assert told["flow steps"] == ["2", "2", "1"]
    assert told["MAE, chunk"][0] == told["MAE, chunk"][1] != told["MAE, chunk"][2]
    capsys.readouterr()
    for policy, steps, what in (
        (world / "policy", 11, "policy takes 1 to 10"),
        (tmp_path / "bundle", 11, "bundle takes 1 to 10"),
        (world / "policy", 0, "--flow-steps: '0' is not"),
        (tmp_path / "one.npz", 2, "predicted in one pass, or before; leave it out"),
    ):
        code, line = command("evaluate", policy, "--flow-steps", steps, *data, capsys=capsys)
        assert code == 2 and what in line, line


def test_data_of_another_robot_are_refused_by_evaluation_and_anchors(world, tmp_path, capsys):
    write_data(tmp_path / "wide", World(episodes=2, length=3, dims=7))
    common = ["--dataset", tmp_path / "wide", "--device", "cpu"]
    for words in (
        ["evaluate", world / "policy"],
        ["anchors", "--checkpoint", world / "policy", "--count=2", "--out", tmp_path / "anchors"],
    ):
        code, line = command(*words, *common, capsys=capsys)
        assert code == 2 and "7 dimensions" in line
    assert not (tmp_path / "anchors").exists()


def test_anchors_that_are_fewer_than_their_metadata_says_are_refused(world, tmp_path, capsys):
    made = [
        "anchors",
        "--checkpoint",
        world / "policy",
        "--dataset",
        world / "data",
        "--count=4",
        "--device=cpu",
        "--out",
        tmp_path / "anchors",
    ]
    assert main([str(word) for word in made]) == 0
    capsys.readouterr()
    file = tmp_path / "anchors" / "metadata.json"
    for count in (9, "4", -1):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"count": count}))
        code, line = command(
            *fine_tune(world, tmp_path / "run", "--craft-anchors", tmp_path / "anchors", "--statistics=checkpoint"),
            capsys=capsys,
        )
        assert code == 2 and "build the anchors again" in line and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"index": np.array([1.5, 6.5])}, "whole numbers"),
        ({"index": np.array([1, 1])}, "each once"),
        ({"action": np.full((2, 1, 2), np.nan)}, "finite"),
        ({"action": np.full((2, 1, 2), "0")}, "finite"),
        ({"executed": np.array(0)}, "`executed` must be"),
        ({"executed": np.array(9)}, "the chunk holds 1"),
        ({"parameters": np.array(-1)}, "`parameters` must be"),
        ({"latency_ms": np.array([-1.0])}, "`latency_ms`"),
        ({"latency_ms": np.array("fast")}, "`latency_ms`"),
        ({"action": np.zeros((2, 1))}, "needs `index`"),
    ],
)
def test_saved_predictions_of_another_form_are_named(world, tmp_path, capsys, change, told):
    content = {"index": np.array([1, 6]), "action": np.zeros((2, 1, 2), np.float32)}
    np.savez(tmp_path / "act.npz", **{**content, **change})
    code, line = command("compare", tmp_path / "act.npz", "--dataset", world / "data", capsys=capsys)
    assert code == 2 and told in line, line


def test_a_torn_or_empty_npz_is_one_line(world, tmp_path, capsys):
    np.savez(tmp_path / "act.npz", index=np.arange(2))
    torn = (tmp_path / "act.npz").read_bytes()
    for part in (torn[:100], b""):
        (tmp_path / "act.npz").write_bytes(part)
        code, line = command("compare", tmp_path / "act.npz", "--dataset", world / "data", capsys=capsys)
        assert code == 2 and "no predictions to read" in line


def test_a_process_that_trained_on_the_cpu_does_not_take_it_for_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen on an H200: accelerate keeps the first device of a process; a run asked for cuda then ran on the CPU."""
    assert make_accelerator("cpu").device.type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(TrainingError, match="device cuda: this process already works on cpu"):
        make_accelerator("cuda")
