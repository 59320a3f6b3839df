# SPDX-License-Identifier: Apache-2.0
"""`vla-runtime demo`: which policy it takes for which arm."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from vla_edge.benchmarks import demo as subject
from vla_edge.errors import ConfigError


def options(out: Path, arm: str) -> subject.DemoOptions:
    return subject.DemoOptions(arm=arm, out=out, robot_only=True, random=False, seconds=8.0, seed=5)


@pytest.mark.parametrize("arm", subject.EXAMPLES)
def test_each_arm_moves_by_the_policy_that_learnt_on_it(
    arm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed: list[str] = []

    def call(name: str, words: Sequence[str]) -> dict[str, Any]:
        typed[:] = words
        colour = words[words.index("--task") + 1].split()[2]
        return {"simulated_arm": {"tip_to_cube_m": {colour: 0.01}}, "missed": 0, "ticks": 240}

    monkeypatch.setattr(subject, "_call", call)
    monkeypatch.setattr(subject, "_overview", lambda out: None)
    assert all(row["reached"] for row in subject.demo(options(tmp_path, arm)).values())
    bundle = Path(typed[typed.index("--bundle") + 1])
    assert (bundle / "manifest.json").is_file() and (bundle.parent / "checkpoint" / "config.json").is_file()
    assert bundle == subject.EXAMPLES[arm] / "bundle" and typed[typed.index("--arm") + 1] == arm


def test_an_arm_whose_example_is_not_installed_is_refused_before_anything_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(subject.EXAMPLES, "so101", tmp_path / "none")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "red.png").touch()
    with pytest.raises(ConfigError, match="none is not here: .* run it in a clone, or leave --arm out"):
        subject.demo(options(tmp_path / "out", "so101"))
    assert (tmp_path / "out" / "red.png").exists()
