# SPDX-License-Identifier: Apache-2.0
"""A distilled bundle in the commands: each works, and other flow steps end in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime.records.recorded_run import record_run
from vla_edge.benchmarks.command import main as bench
from vla_edge.doctor import main as doctor
from vla_edge.export.command import main as export
from vla_edge.robot.sim.render import rendering_fault
from vla_edge.runtime.command import main as runtime

FAULT = rendering_fault()
TASK = "Place the bracelet into the box"
REFUSED = "distilled to 2: ask for no other, or export the policy it was made of"


def test_a_run_takes_the_distilled_steps_and_its_record_gives_the_same_bits_again(
    distilled_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = tmp_path / "inputs.rec"
    run = record_run(tmp_path, distilled_bundle, "--record-inputs", str(inputs))
    capsys.readouterr()
    words = [str(run / "flight.record"), "--inputs", str(inputs), "--bundle", str(distilled_bundle), "--json"]
    assert runtime(["replay", *words]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["differing"] == 0 and told["chunks"] >= 1
    assert told["inputs"]["inferences"] >= 2 and told["inputs"]["differing"] == 0 == told["inputs"]["worst"]


def test_the_doctor_measures_a_distilled_bundle(distilled_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    doctor(["deploy", str(distilled_bundle), "--task", TASK, "--threads", "1", "--json"])
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    states = {item["name"]: item["state"] for item in told["checks"]}
    speed = next(item for item in told["checks"] if item["name"] == "speed")
    assert speed["state"] != "not run" and " (distilled); " in speed["found"], told
    assert states["instruction"] == states["exception handling"] == "passed", told


def test_the_bench_times_the_distilled_steps(distilled_bundle: Path, tmp_path: Path) -> None:
    words = ["--bundle", str(distilled_bundle), "--rounds", "1", "--threads", "1", "--out", str(tmp_path)]
    assert bench([*words, "--name", "two"]) == 0
    (subject,) = json.loads((tmp_path / "two.json").read_text())["subjects"].values()
    assert subject["steps"] == 2


@pytest.mark.skipif(FAULT is not None, reason=str(FAULT))
def test_lockstep_plans_in_the_distilled_steps(distilled_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--bundle", str(distilled_bundle), "--task", TASK, "--seconds", "1", "--threads", "1", "--json"]
    assert runtime(["lockstep", *words]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["chunks"]["taken"] > 0


CAMERAS = ["--camera", "laptop=0", "--camera", "phone=1"]


def words_of(command: str, bundle: Path, tmp_path: Path) -> list[str]:
    """What else the command wants."""
    (tmp_path / "run").mkdir(mode=0o700)
    seen: dict[str, Any] = {
        "observation.state": np.zeros(6, np.float32),
        "observation.images.laptop": np.zeros((48, 64, 3), np.uint8),
    }
    np.savez(tmp_path / "seen.npz", task=TASK, **seen)
    words = {
        "infer": ["--observation", str(tmp_path / "seen.npz"), "--out", str(tmp_path / "out.npz")],
        "inference": [*CAMERAS, "--nice", "0", "--run-dir", str(tmp_path / "run"), "--task", TASK],
        "lockstep": ["--task", TASK],
        "run": ["--robot", "sim", "--run-dir", str(tmp_path / "run"), "--task", TASK],
        "serve": ["--nice", "0", "--port", "0", "--run-dir", str(tmp_path / "run")],
    }
    return ["--bundle", str(bundle), "--threads", "1", *words.get(command, [])]


@pytest.mark.parametrize("command", ["bench", "infer", "inference", "lockstep", "run", "serve"])
def test_other_steps_than_the_distilled_ones_are_one_line(
    distilled_bundle: Path, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*words_of(command, distilled_bundle, tmp_path), "--flow-steps", "10"]
    code = bench(words) if command == "bench" else runtime([command, *words])
    told = capsys.readouterr().err
    assert code == 2 and told.count("\n") == 1 and REFUSED in told, told


def test_unequal_steps_of_a_distilled_checkpoint_are_one_line(
    distilled_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--checkpoint", str(distilled_bundle.parent / "policy"), "--out", str(tmp_path / "made")]
    assert export([*words, "--step-sizes", "0.6,0.4"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "--step-sizes" in told and "distilled" in told, told


UNCALIBRATED = "needs a calibrated bundle, this one has no thresholds; run vla-calibrate gate, or choose "


@pytest.mark.parametrize("command", ["inference", "run"])
@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--refresh", "beside"], f"--refresh beside {UNCALIBRATED}--refresh front --cache off"),
        (["--refresh", "beside", "--cache", "still"], f"--refresh beside {UNCALIBRATED}--refresh front --cache off"),
        (["--refresh", "beside", "--cache", "off"], "--refresh beside goes with --cache still or gated, not with off"),
        (["--cache", "still"], f"--cache still {UNCALIBRATED}--cache off"),
    ],
)
def test_a_cache_or_refresh_that_the_bundle_cannot_have_is_one_line_before_anything_starts(
    distilled_bundle: Path, tmp_path: Path, command: str, words: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert runtime([command, *words_of(command, distilled_bundle, tmp_path), *words]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {why}") and told.count("\n") == 1
    assert ("vla-calibrate gate" in told) is ("calibrated" in why)
    assert not list((tmp_path / "run").iterdir())
