# SPDX-License-Identifier: Apache-2.0
"""LeRobot's command lines in `vla-train`: one table into our names, each of which our parser has."""

from __future__ import annotations

import pytest

from vla_edge.errors import UsageError
from vla_edge.training.command import main
from vla_edge.training.lerobot_arguments import NAMES, SWITCHES, table, translate


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
    ],
)
def test_a_value_that_cannot_be_translated_is_one_line(words: list[str], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        translate(words)


def test_a_name_outside_the_table_is_refused_by_the_parser(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fine-tune", "--policy.path=a", "--dataset.root=b", "--env.type=pusht"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "there is no option --env.type" in line
