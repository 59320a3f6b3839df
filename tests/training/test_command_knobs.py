# SPDX-License-Identifier: Apache-2.0
"""Every field of a stage file, every option of `vla-train stages`, `anchors`, `plan`, `evaluate`, `compare` and
`cls-report` changes what it says: tables of all of them, judged by the second stage's run, by what is handed to the
sequence, by the cache that is written, and by what `--json` prints."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from vla_edge.errors import ConfigError
from vla_edge.fields import build, to_json
from vla_edge.lerobot_data.reader import open_dataset
from vla_edge.policies.smolvla.policy import SmolVLAPolicy
from vla_edge.training import step_plan
from vla_edge.training.command import main
from vla_edge.training.evaluation import predictors
from vla_edge.training.run_config import TaskData, TrainConfig
from vla_edge.training.runs import fine_tune
from vla_edge.training.sequential import phases_command
from vla_edge.training.sequential.phases import SharedSettings, Stage, StagePlan, StageTask, describe, hold_out
from vla_edge.training.sequential.task_sequence import StageRun, _fitted_start, check_plan, stage_config, train_stages
from vla_edge.training.statistics import statistics_digest
from vla_edge.training.step_plan import StepCost

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.training.training_world import one_thread, two_steps

one_thread()


def plan_of(world: Path) -> StagePlan:
    """Two tasks, the second stage a mix of both."""
    tasks = tuple(StageTask(name, str(world / name), 2, 2) for name in ("data", "more"))
    mixes = {"one": (1.0,), "two": (0.3, 0.7)}
    stages = tuple(Stage(name, mix, 1e-3, 1.0, 1, 10) for name, mix in mixes.items())
    return StagePlan("two", tasks, stages, SharedSettings(batch_size=4))


def base_of(world: Path, out: Path) -> TrainConfig:
    return TrainConfig(str(world / "policy"), str(out), (), device="cpu", validation_frames=4)


def flat(content: Any, name: str = "") -> dict[str, Any]:
    """Values of nested objects by their dotted names; lists are values."""
    if not isinstance(content, dict):
        return {name: content}
    return {
        key: value for inner in content for key, value in flat(content[inner], f"{name}.{inner}".lstrip(".")).items()
    }


# ---- the stage file

REFUSED = "refused"
FIELDS: dict[str, tuple[Any, str]] = {
    "name": ("other", "described"),
    "tasks.name": ("other", "data"),
    "tasks.dataset": ("data", "data"),
    "tasks.action_dim": (3, REFUSED),
    "tasks.state_dim": (3, REFUSED),
    "tasks.tolerance_s": (0.5, "data"),
    "stages.name": ("other", "output"),
    "stages.mix": ([0.5, 0.5], "data"),
    "stages.lr": (2e-3, "optimizer.lr"),
    "stages.epochs": (3, "steps"),
    "stages.warmup_steps": (2, "schedule.warmup_steps"),
    "stages.decay_steps": (20, "schedule.decay_steps"),
    "shared.batch_size": (2, "batch_size"),
    "shared.accumulation": (2, "accumulation"),
    "shared.validate_every_epochs": (0.25, "validate_every"),
    "shared.statistics": ("first", "statistics of the start"),
    "shared.held_out_fraction": (0.5, "data"),
    "shared.freeze.vision": (False, "freeze.vision"),
    "shared.freeze.expert_only": (False, "freeze.expert_only"),
    "shared.freeze.state_proj": (False, "freeze.state_proj"),
    "shared.optimizer.lr": (1e-3, REFUSED),
    "shared.optimizer.betas": ([0.1, 0.2], "optimizer.betas"),
    "shared.optimizer.eps": (1e-6, "optimizer.eps"),
    "shared.optimizer.weight_decay": (0.1, "optimizer.weight_decay"),
    "shared.optimizer.grad_clip_norm": (1.0, "optimizer.grad_clip_norm"),
    "shared.decay_lr": (1e-5, "schedule.decay_lr"),
    "policy.chunk_size": (8, REFUSED),
    "policy.n_action_steps": (2, "n_action_steps"),
    "policy.num_steps": (5, "num_steps"),
    "policy.max_state_dim": (16, REFUSED),
    "policy.max_action_dim": (16, REFUSED),
}
"""Field → another value, and what of the second stage's run must change: a field of its `TrainConfig` (how that changes
a run is test_training_knobs.py's), what `said` names, or nothing, because the value is refused."""


def test_every_field_of_a_stage_file_stands_in_the_table(world: Path) -> None:
    content = to_json(plan_of(world))
    content |= {"tasks": content["tasks"][1], "stages": content["stages"][1]}
    assert set(flat(content)) == set(FIELDS)


def changed_plan(world: Path, name: str, value: Any) -> StagePlan:
    content = to_json(plan_of(world))
    *outer, last = name.split(".")
    place: Any = content
    for part in outer:
        place = place[part][1] if part in ("tasks", "stages") else place[part]
    place[last] = str(world / value) if name == "tasks.dataset" else value
    return build(StagePlan, content, "stages.yaml", ConfigError)


def said(world: Path, plan: StagePlan, out: Path) -> dict[str, Any]:
    """The second stage's run, and what else a plan decides."""
    sequence = StageRun(plan, base_of(world, Path("out")))
    data = [open_dataset(task.dataset) for task in plan.tasks]
    held_out = [hold_out(len(part.episodes), plan.shared.held_out_fraction, 1000) for part in data]
    start = SmolVLAPolicy.from_pretrained(_fitted_start(sequence, data, out))
    return {
        **flat(to_json(stage_config(sequence, 1, held_out, "start"))),
        "described": describe(plan),
        "statistics of the start": statistics_digest(start.settings.statistics),
    }


@pytest.mark.parametrize("name", FIELDS)
def test_each_field_of_a_stage_file_changes_what_its_stage_is_trained_with(
    world: Path, tmp_path: Path, name: str
) -> None:
    value, where = FIELDS[name]
    if where == REFUSED:
        file = tmp_path / "stages.yaml"
        file.write_text(yaml.safe_dump(to_json(changed_plan(world, name, value))))
        with pytest.raises(ConfigError, match=name.rpartition(".")[2].removesuffix("_dim")):
            plan = phases_command.read_stages(file)
            check_plan(StageRun(plan, base_of(world, tmp_path)), [open_dataset(task.dataset) for task in plan.tasks])
        return
    usual = said(world, plan_of(world), tmp_path / "usual")
    assert usual[where] != said(world, changed_plan(world, name, value), tmp_path / "changed")[where]


# ---- vla-train stages

OPTIONS: dict[str, tuple[list[str], Callable[[StageRun], Any]]] = {
    "file": (["other.yaml"], lambda run: run.plan.name),
    "--checkpoint": (["{world}/float"], lambda run: run.base.policy),
    "--out": (["elsewhere"], lambda run: run.base.output),
    "--dataset": (["more={world}/data"], lambda run: run.plan.tasks[1].dataset),
    "--camera": (["top=front"], lambda run: dict(run.base.rename)),
    "--anchors": (["4"], lambda run: run.anchors),
    "--anchor-layers": (["-1"], lambda run: run.anchor_layers),
    "--precision": (["bf16"], lambda run: run.base.precision),
    "--device": (["auto"], lambda run: run.base.device),
    "--seed": (["3"], lambda run: run.base.seed),
    "--workers": (["2"], lambda run: run.base.workers),
    "--save-every": (["3"], lambda run: run.base.save_every),
    "--keep": (["1"], lambda run: run.base.keep),
    "--stage": (["two"], lambda run: run.only),
    "--held-out": (["0.5"], lambda run: run.plan.shared.held_out_fraction),
    "--track": (["tensorboard"], lambda run: run.base.trackers),
    "--set": (["optimizer.eps=1e-7"], lambda run: (run.base.optimizer.eps, run.settings)),
}
"""Option → its value, and where the sequence that is trained must hold it."""


class _Handed(Exception):
    """Stands for the training."""


@pytest.fixture(scope="module")
def stages(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stages")
    for name in ("stages", "other"):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(to_json(replace(plan_of(world), name=name))))
    return folder


def handed(world: Path, stages: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], file: str) -> StageRun:
    """What the command hands to the training."""
    found: list[StageRun] = []

    def keep(sequence: StageRun, *_: Any) -> None:
        found.append(sequence)
        raise _Handed

    monkeypatch.setattr(phases_command, "train_stages", keep)
    usual = {"--checkpoint": str(world / "policy"), "--out": "out", "--device": "cpu"}
    usual = {flag: value for flag, value in usual.items() if flag not in words}
    with pytest.raises(_Handed):
        main(["stages", str(stages / file), *(word for pair in usual.items() for word in pair), *words])
    return found[0]


def options_of(name: str) -> set[str]:
    """A subcommand's own options and arguments."""
    parser = main.parser(name)
    own = [action for action in parser._actions if action not in parser.last._group_actions]
    return {(action.option_strings or [action.dest])[0] for action in own}


def test_the_options_of_stages_are_the_whole_table() -> None:
    assert options_of("stages") == {*OPTIONS, "--dry-run"}, "the dry run is test_training_bad_input.py's"


@pytest.mark.parametrize("option", OPTIONS)
def test_each_option_of_stages_reaches_the_sequence(
    world: Path, stages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    monkeypatch.chdir(tmp_path)
    values, where = OPTIONS[option]
    words = [value.format(world=world) for value in values]
    plain = handed(world, stages, monkeypatch, [], "stages.yaml")
    file = words[0] if option == "file" else "stages.yaml"
    changed = handed(world, stages, monkeypatch, [] if option == "file" else [option, *words], file)
    assert where(plain) != where(changed)


def test_settings_anchors_and_one_stage_alone_reach_the_runs(world: Path, tmp_path: Path) -> None:
    settings = ("steps=2", "log_every=1", "craft.every=1", "craft.anchor_batch=2")
    run = StageRun(plan_of(world), base_of(world, tmp_path / "all"), 4, settings, anchor_layers=(-1,))
    train_stages(run, phases_command.reporter)
    meta = json.loads((tmp_path / "all" / "anchors_2" / "metadata.json").read_text())
    assert meta["count"] == 4 and meta["layers"] == [-1]
    written = json.loads((tmp_path / "all" / "2_two" / "run.json").read_text())
    assert written["steps"] == 2 and written["craft"]["anchors"].endswith("anchors_2")
    assert (tmp_path / "all" / "2_two" / "lambda_history.csv").is_file()
    alone = replace(run, base=base_of(world, tmp_path / "one"), only="one", anchors=0)
    train_stages(alone, phases_command.reporter)
    assert (tmp_path / "one" / "1_one").is_dir() and not (tmp_path / "one" / "2_two").exists()


# ---- vla-train anchors

ANCHORS = {
    "--checkpoint": (["{world}/float"], "teacher"),
    "--dataset": (["{world}/more"], "shards"),
    "--episodes": (["0,1"], "shards"),
    "--count": (["5"], "count"),
    "--features": (["velocity"], "features"),
    "--layers": (["-1"], "layers"),
    "--seed": (["1"], "shards"),
}
"""Option → its value, and what of the cache's metadata must change."""
ANCHORS_ELSEWHERE = {"--out", "--device", "--tolerance"}
"""Where the cache lies, on what it is computed, which files are read at all."""


def test_the_options_of_anchors_are_the_whole_table() -> None:
    assert options_of("anchors") == {*ANCHORS, *ANCHORS_ELSEWHERE}


@pytest.mark.parametrize("option", ANCHORS)
def test_each_option_of_anchors_changes_the_cache(world: Path, tmp_path: Path, option: str) -> None:
    values, where = ANCHORS[option]
    metas = []
    for name, given in (("usual", []), ("changed", [option, *(value.format(world=world) for value in values)])):
        words = ["anchors", *given, "--out", str(tmp_path / name), "--device", "cpu"]
        usual = {"--checkpoint": world / "policy", "--dataset": world / "data", "--count": 6}
        words += [str(word) for pair in usual.items() if pair[0] not in given for word in pair]
        assert main(words) == 0
        metas.append(json.loads((tmp_path / name / "metadata.json").read_text()))
    assert metas[0][where] != metas[1][where]


# ---- vla-train evaluate, compare, cls-report

SCOPE = {
    "--dataset": "{world}/more",
    "--episodes": "1",
    "--run": "{tmp}/run",
    "--stride": "1",
    "--seed": "1",
    "--draws": "2",
    "--flow-steps": "3",
}
"""Option → a value that changes what is predicted, or on which frames."""
LOOK = {"--dataset": "{world}/more", "--episodes": "0-3", "--stride": "2", "--near": "1", "--threshold": "-1"}
FILES = {
    "evaluate": {"--out": "a.npz"},
    "compare": {"--png": "a.png", "--markdown": "a.md"},
    "cls-report": {"--out": "a"},
}
SAME = {"--tolerance", "--device", "--threads"}
"""Which files are read at all, on what and by how many threads: numbers stay."""


def test_the_options_of_looking_at_a_policy_are_the_whole_tables() -> None:
    assert options_of("evaluate") == {"policy", *SCOPE, *FILES["evaluate"], *SAME}
    assert options_of("compare") == {"policies", "--trials", "--timed", *SCOPE, *FILES["compare"], *SAME}
    assert options_of("cls-report") == {"policy", *LOOK, *FILES["cls-report"], "--tolerance"}


def answer_of(words: list[object], capsys: pytest.CaptureFixture[str]) -> Any:
    assert main([*map(str, words), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    for contender in told.get("policies", ()):
        contender.update(latency_p50_ms=None, latency_p99_ms=None)
    return told


@pytest.mark.parametrize("option", SCOPE)
@pytest.mark.parametrize("command", ["evaluate", "compare"])
def test_each_option_of_looking_at_a_policy_changes_the_numbers(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, option: str
) -> None:
    run = replace(base_of(world, tmp_path / "run"), data=(TaskData("data", str(world / "data"), held_out=(2,)),))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(json.dumps(to_json(run)))
    usual = {"--dataset": world / "data", "--episodes": "0", "--stride": "3"}
    if option == "--run":
        del usual["--episodes"]
    plain = answer_of([command, world / "policy", *(word for pair in usual.items() for word in pair)], capsys)
    usual[option] = SCOPE[option].format(world=world, tmp=tmp_path)
    assert plain != answer_of([command, world / "policy", *(word for pair in usual.items() for word in pair)], capsys)


def test_how_often_a_prediction_is_timed_is_asked(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    timed: list[int] = []
    monkeypatch.setattr(predictors, "_timed", lambda predict, queries: timed.append(len(queries)))
    words = ["compare", world / "policy", "--dataset", world / "data", "--episodes", "0", "--stride", "1"]
    for wanted in (1, 2):
        answer_of([*words, "--timed", wanted], capsys)
    assert timed == [1, 2]


@pytest.fixture(scope="module")
def watched(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy with a CLS head that was trained for a step."""
    out = tmp_path_factory.mktemp("watched") / "run"
    fine_tune(two_steps(world, out, "kind=delta", "steps=1", "save_every=1"))
    return out / "checkpoints" / "last" / "pretrained_model"


@pytest.mark.parametrize("option", LOOK)
def test_each_option_of_the_cls_report_changes_the_numbers(
    world: Path, watched: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    usual = {"--dataset": str(world / "data"), "--threshold": "1"}
    changed = usual | {option: LOOK[option].format(world=world)}
    told = [
        answer_of(["cls-report", watched, *(word for pair in given.items() for word in pair)], capsys)
        for given in (usual, changed)
    ]
    assert told[0] != told[1]


@pytest.mark.parametrize("command", FILES)
def test_what_is_asked_for_is_written(
    world: Path, watched: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    files = {flag: tmp_path / name for flag, name in FILES[command].items()}
    words = [command, watched, "--dataset", world / "data"]
    answer_of([*words, *(word for pair in files.items() for word in pair)], capsys)
    assert all(file.exists() for file in files.values())


# ---- vla-train plan


def test_each_option_of_plan_decides_what_is_counted_or_run(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a step costs is computed in test_step_plan.py: here it is two numbers of the batch."""
    asked = []

    def here(policy: Any, case: Any, batches: Any, cores: int) -> dict[int, tuple[float, float]]:
        asked.append((tuple(batches), cores))
        return dict.fromkeys(batches, (1.5, 2000000000.0))

    monkeypatch.setattr(step_plan, "_here", here)
    monkeypatch.setattr(step_plan, "step_cost", lambda policy, case, batch: StepCost(1e9 * batch, 1e12 * batch, 1e3))
    assert options_of("plan") == {"--checkpoint", "--batch", "--measure", "--threads"}
    words = ["plan", "--checkpoint", str(world / "policy"), "--batch", "2", "--json"]
    assert main(words) == 0 and not asked
    plain = json.loads(capsys.readouterr().out)["rows"]
    assert set(plain[0]["computed"]) == {"2"} and not plain[0]["measured_here"]
    assert main([*words, "--measure", "--threads", "1"]) == 0 and set(asked) == {((2,), 1)}
    assert json.loads(capsys.readouterr().out)["rows"][0]["measured_here"] == {"2": {"s": 1.5, "memory": 2e9}}
