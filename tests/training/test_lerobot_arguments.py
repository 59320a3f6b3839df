# SPDX-License-Identifier: Apache-2.0
"""LeRobot's command lines in `vla-train`: one table into our names, each of which changes the field it names; and so
does each flag of ours."""

from __future__ import annotations

import sys
from functools import reduce
from pathlib import Path
from typing import Any

import pytest

from vla_edge.errors import UsageError
from vla_edge.training.arguments import DISTILL, FINE_TUNE, FLAGS, folder, scratch_defaults
from vla_edge.training.command import main
from vla_edge.training.lerobot_arguments import NAMES, SETTINGS, SWITCHES, table, translate
from vla_edge.training.options import config_from_arguments
from vla_edge.training.run_config import TrainConfig

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.training.training_world import World, write_data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("arguments") / "data", World(episodes=2, length=2))


COMMANDS: dict[str, tuple[list[str], dict[str, Any], str]] = {
    "fine-tune": (["--checkpoint=policy"], FINE_TUNE, "base"),
    "distill": (["--checkpoint=policy", "--flow-steps=1"], DISTILL, "distill"),
    "scratch": (["--backbone=vlm"], scratch_defaults("smolvla"), "base"),
}
"""Subcommand → what it needs, its defaults and the kind of its run."""


def config_of(data: Path, *words: str, command: str = "fine-tune") -> TrainConfig:
    """The configuration that a command line leads to."""
    own = [] if any(word.startswith("--dataset.r") for word in words) else ["--dataset", str(data)]
    needed, defaults, kind = COMMANDS[command]
    line = translate([*needed, "--out=out", *own, *words])
    arguments = main.parser(command).parse_args(line)
    return config_from_arguments(arguments, getattr(arguments, "checkpoint", ""), defaults, kind)


def field_of(config: TrainConfig, path: str) -> Any:
    return reduce(getattr, path.split("."), config)


LEROBOT = {
    "--policy.path=x": ("policy", "x"),
    "--dataset.root={data}": ("data", None),
    "--dataset.repo_id={data}": ("data", None),
    "--dataset.episodes=[0]": ("data", None),
    "--tolerance_s=0.02": ("data", None),
    "--output_dir=x": ("output", "x"),
    "--batch_size=3": ("batch_size", 3),
    "--num_workers=2": ("workers", 2),
    "--save_freq=7": ("save_every", 7),
    "--log_freq=7": ("log_every", 7),
    "--policy.device=cpu": ("device", "cpu"),
    "--policy.n_action_steps=7": ("n_action_steps", 7),
    "--policy.optimizer_lr=1e-3": ("optimizer.lr", 1e-3),
    "--policy.optimizer_weight_decay=0.5": ("optimizer.weight_decay", 0.5),
    "--policy.optimizer_grad_clip_norm=3": ("optimizer.grad_clip_norm", 3.0),
    "--policy.scheduler_warmup_steps=7": ("schedule.warmup_steps", 7),
    "--policy.scheduler_decay_steps=7": ("schedule.decay_steps", 7),
    "--policy.scheduler_decay_lr=1e-7": ("schedule.decay_lr", 1e-7),
    "--optimizer.lr=1e-3": ("optimizer.lr", 1e-3),
    "--optimizer.weight_decay=0.5": ("optimizer.weight_decay", 0.5),
    "--optimizer.grad_clip_norm=3": ("optimizer.grad_clip_norm", 3.0),
    "--peft.r=4": ("lora.rank", 4),
    "--policy.optimizer_betas=[0.8, 0.9]": ("optimizer.betas", (0.8, 0.9)),
    "--policy.optimizer_eps=1e-6": ("optimizer.eps", 1e-6),
    "--optimizer.betas=[0.8, 0.9]": ("optimizer.betas", (0.8, 0.9)),
    "--optimizer.eps=1e-6": ("optimizer.eps", 1e-6),
    "--policy.num_steps=4": ("num_steps", 4),
    "--policy.resize_imgs_with_padding=[64, 64]": ("image_size", (64, 64)),
    "--wandb.project=arms": ("wandb.project", "arms"),
    "--wandb.entity=lab": ("wandb.entity", "lab"),
    "--save_checkpoint=false": ("save", False),
    "--policy.freeze_vision_encoder=false": ("freeze.vision", False),
    "--policy.train_expert_only=true": ("freeze.expert_only", True),
    "--policy.train_state_proj=false": ("freeze.state_proj", False),
    "--wandb.enable=true": ("trackers", ("wandb",)),
    '--rename_map={{"observation.images.front": "observation.images.top"}}': (
        "rename",
        {"observation.images.top": "observation.images.front"},
    ),
}
"""LeRobot's argument → the field of the run it must set, and to what (None: data, judged below)."""


@pytest.mark.parametrize("words", LEROBOT)
def test_each_of_lerobots_names_sets_the_field_it_names(data: Path, words: str) -> None:
    path, value = LEROBOT[words]
    config = config_of(data, words.format(data=data))
    if value is not None:
        assert field_of(config, path) == value != field_of(config_of(data), path)
    (task,) = config.data
    assert task.path == str(data)
    assert (task.episodes == (0,)) == ("episodes" in words) and (task.tolerance_s == 0.02) == ("tolerance" in words)


def test_the_cases_are_the_whole_table() -> None:
    named = {words.partition("=")[0] for words in LEROBOT}
    assert named == {*NAMES, *SETTINGS, *SWITCHES, "--dataset.repo_id", "--rename_map"}


def test_distill_and_scratch_have_the_options_of_fine_tune_and_their_own() -> None:
    options = {
        name: {flag for action in main.parser(name)._actions for flag in action.option_strings} for name in COMMANDS
    }
    assert options["distill"] - options["fine-tune"] == {"--flow-steps"}
    assert options["scratch"] - options["fine-tune"] == {"--family", "--backbone", "--policy-config"}
    assert options["fine-tune"] - options["distill"] == {"--kind"}
    assert options["fine-tune"] - options["scratch"] == {"--kind", "--checkpoint", "--revision"}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("flag", [flag for flags in FLAGS.values() for flag in flags])
def test_each_flag_of_ours_sets_its_field_and_the_help_shows_its_default(data: Path, flag: str, command: str) -> None:
    kind, path = next(flags[flag][:2] for flags in FLAGS.values() if flag in flags)
    usual = field_of(config_of(data, command=command), path)
    shown = next(action for action in main.parser(command)._actions if f"--{flag}" in action.option_strings).help
    said = {True: "yes", False: "no"}.get(usual, usual) if isinstance(usual, bool) else usual
    assert shown is not None and (usual in ("", None) or f"(default: {said})" in shown.replace("%%", "%"))
    if kind is bool:
        words = [f"--no-{flag}" if usual else f"--{flag}"]
    elif isinstance(kind, tuple):
        words = [f"--{flag}", next(choice for choice in kind if choice != usual)]
    elif kind in (str, folder):
        words = [f"--{flag}", "x"]
    else:
        words = [f"--{flag}", "0" if usual else "1"] if flag == "augment" else [f"--{flag}", few(usual)]
    if flag == "validate-every":
        words += ["--held-out", "0.5"]
    assert field_of(config_of(data, *words, command=command), path) != usual


def few(usual: Any) -> str:
    """A value that every number may take: beside the usual one, and below the learning rate."""
    return str(usual / 2) if isinstance(usual, float) and usual else "0.5" if isinstance(usual, float) else "3"


def test_lerobots_first_command_is_a_whole_command_of_ours() -> None:
    words = [
        "--policy.path=BASE",
        "--dataset.root=DIR",
        "--dataset.repo_id=grasp_dataset",
        "--batch_size=8",
        "--steps=50000",
        "--policy.optimizer_lr=5e-5",
    ]
    told = main.parser("fine-tune").parse_args(translate(words))
    assert (told.checkpoint, told.dataset, told.batch_size, told.steps, told.lr) == ("BASE", ["DIR"], 8, 50000, 5e-5)
    assert told.out is None, "a folder with date and time, as LeRobot makes one"


def test_names_with_a_space_lists_and_switches_are_translated() -> None:
    words = [
        "--output_dir",
        "out",
        "--dataset.episodes=[0,1,2]",
        "--policy.train_expert_only=true",
        "--wandb.enable",
        "false",
    ]
    assert translate(words) == ["--out", "out", "--episodes", "0,1,2", "--expert-only"]
    assert translate(["--dataset.repo_id", "me/data", "--seed=3"]) == ["--seed=3", "--dataset", "me/data"]
    assert translate(["--policy.push_to_hub=false", "--seed", "3"]) == ["--seed", "3"]


def test_every_name_of_the_table_is_an_option_here_and_stands_in_the_help() -> None:
    parser = main.parser("fine-tune")
    ours = [*NAMES.values(), *(text.partition("=")[0] for pair in SWITCHES.values() for text in pair if text)]
    assert set(ours) <= set(parser._option_string_actions)
    assert table() in parser.format_help() and all(name in table() for name in [*NAMES, *SWITCHES])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--policy.path"], "needs a value"),
        (["--policy.train_expert_only=maybe"], "write true or false"),
        (["--rename_map={front}"], "write {"),
        (["--policy.push_to_hub=true"], "nothing is uploaded here"),
        (["--policy.pth=a"], "no option --policy.pth; did you mean --policy.path?"),
        (["--dataset.rot", "a"], "did you mean --dataset.root?"),
        (["--policy.optimiser_lr=1"], "did you mean --policy.optimizer_lr?"),
        (["--resume=true"], "is `vla-train resume RUN` here"),
        (["--eval_freq=100"], "is `--validate-every N --held-out 0.1` here"),
    ],
)
def test_a_value_that_cannot_be_translated_is_one_line(words: list[str], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        translate(words)


def test_a_name_outside_the_table_is_refused_by_the_parser(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fine-tune", "--policy.path=a", "--dataset.root=b", "--env.type=pusht"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "there is no option --env.type" in line
