# SPDX-License-Identifier: Apache-2.0
"""A distilled bundle in the commands: each works, and other flow steps end in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.runtime.records.recorded_run import record_run

from vla_edge.benchmarks.command import main as bench
from vla_edge.doctor import main as doctor
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
    assert states["speed"] != "not run" and states["instruction"] == states["exception handling"] == "passed", told


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


@pytest.mark.parametrize("command", ["lockstep", "inference"])
def test_other_steps_than_the_distilled_ones_are_one_line(
    distilled_bundle: Path, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--bundle", str(distilled_bundle), "--threads", "1", "--flow-steps", "10"]
    if command == "lockstep":
        code = runtime(["lockstep", *words, "--task", TASK])
    else:
        (tmp_path / "run").mkdir(mode=0o700)
        words += ["--camera", "laptop=0", "--camera", "phone=1", "--nice", "0", "--run-dir", str(tmp_path / "run")]
        code = runtime(["inference", *words, "--task", TASK])
    told = capsys.readouterr().err
    assert code == 2 and told.count("\n") == 1 and REFUSED in told, told
