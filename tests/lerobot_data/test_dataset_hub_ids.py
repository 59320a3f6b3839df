# SPDX-License-Identifier: Apache-2.0
"""A dataset named by its Hub id, wherever a dataset is taken."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from vla_edge.lerobot_data.command import main
from vla_edge.lerobot_data.reader import open_dataset
from vla_edge.training.options import tasks_of

V30 = Path(__file__).resolve().parents[1] / "data/koch_v30_official"


@pytest.fixture
def named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of `lab/cubes` where LeRobot's recorder keeps it."""
    monkeypatch.setenv("HF_LEROBOT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(V30, tmp_path / "home/lab/cubes")
    return tmp_path / "home/lab/cubes"


def test_it_is_found_by_readers_training_and_commands(named: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_dataset("lab/cubes") as dataset:
        assert dataset.root == named
    (task,) = tasks_of(["lab/cubes:2"], ())
    assert (task.name, task.path, task.weight) == ("cubes", str(named), 2.0)
    for words in (["verify"], ["stats"], ["tasks"], ["info"]):
        assert main([*words, "lab/cubes", "--json"]) == 0
        json.loads(capsys.readouterr().out)
    assert main(["delete", "lab/cubes", "--episodes", "0", "--out", "kept"]) == 0


@pytest.mark.parametrize("words", [["stats", "--write"], ["tasks", "--add", "x"], ["tasks", "--assign", "x"]])
def test_it_is_not_changed_in_place(named: Path, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    before = {path: path.read_bytes() for path in named.rglob("*") if path.is_file()}
    assert main([words[0], "lab/cubes", *words[1:]]) == 2
    told = capsys.readouterr().err
    assert "hf download --repo-type dataset lab/cubes --local-dir cubes" in told and told.count("\n") == 1
    assert before == {path: path.read_bytes() for path in named.rglob("*") if path.is_file()}
