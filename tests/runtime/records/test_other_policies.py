# SPDX-License-Identifier: Apache-2.0
"""Policies of other kinds from the command line: an ACT, which reads no task, and a SmolVLA of relative actions."""

from __future__ import annotations

import asyncio
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.runtime.control.control_rig import EVENT_S
from tests.runtime.records.recorded_run import record_run
from tests.runtime.service.serve_world import served

from vla_edge.bundle import open_bundle, write_manifest
from vla_edge.export.assemble import ExportRequest, export_bundle
from vla_edge.robot.sim.render import rendering_fault
from vla_edge.runtime.command import main
from vla_edge.runtime.control.handover import ENSEMBLE_COEFFICIENT, HandOver, handover_of
from vla_edge.runtime.inference.scene_gate import NO_SIMILARITY, GateSettings
from vla_edge.runtime.service.wire import decode, encode

ROOT = Path(__file__).resolve().parents[3]
ACT = ROOT / "examples" / "reach-cube" / "act" / "red"
GOLDEN = ROOT / "tests" / "golden" / "koch-bfloat16"
SIZE = (128, 96)
FAULT = rendering_fault()


@pytest.fixture(scope="module")
def act_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("act") / "bundle"
    export_bundle(ExportRequest(ACT, out, threads=1, joint_units="degrees", fps=30.0), lambda step: None)
    return out


@pytest.fixture(scope="module")
def still_bundle(act_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with limits of stillness: nothing is kept but of a picture that did not change at all."""
    bundle = tmp_path_factory.mktemp("still") / "bundle"
    shutil.copytree(act_bundle, bundle)
    manifest = open_bundle(bundle).manifest
    limits = GateSettings(NO_SIMILARITY, 1.0, 0.0, 0.0, max_age_s=60.0)
    write_manifest(bundle, replace(manifest, gate={**manifest.gate, **asdict(limits)}))
    return bundle


@pytest.fixture(scope="module")
def relative_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden policy with the steps that make its actions count from the state."""
    folder = tmp_path_factory.mktemp("relative")
    shutil.copytree(GOLDEN, folder / "policy")
    for file, place, name in (("policy_preprocessor", 5, "relative"), ("policy_postprocessor", 1, "absolute")):
        content = json.loads((folder / "policy" / f"{file}.json").read_text())
        content["steps"].insert(place, {"registry_name": f"{name}_actions_processor", "config": {"enabled": True}})
        (folder / "policy" / f"{file}.json").write_text(json.dumps(content))
    export_bundle(ExportRequest(folder / "policy", folder / "bundle", threads=1), lambda step: None)
    return folder / "bundle"


def replayed(run: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What `vla-runtime replay` tells of a record and its inputs."""
    inputs = run.parent / "inputs.rec"
    capsys.readouterr()
    words = [str(run / "flight.record"), "--inputs", str(inputs), "--bundle", str(bundle), "--json"]
    assert main(["replay", *words]) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return told


def test_an_act_runs_without_a_task_and_its_record_gives_the_same_bits_again(
    act_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = ["--record-inputs", str(tmp_path / "inputs.rec")]
    run = record_run(tmp_path, act_bundle, *inputs, task=None, size=SIZE)
    told = replayed(run, act_bundle, capsys)
    assert told["differing"] == 0 and told["chunks"] >= 1
    assert told["inputs"]["inferences"] >= 2 and told["inputs"]["differing"] == 0 == told["inputs"]["worst"]
    assert main(["report", str(run / "flight.record"), "--out", str(tmp_path / "page.html")]) == 0


def test_an_act_keeps_the_tokens_of_still_cameras_on_the_robot_and_its_record_gives_the_same_bits_again(
    still_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The phone shows one picture, the laptop two in turn."""
    words = ["--record-inputs", str(tmp_path / "inputs.rec"), "--cache", "still", "--replan-s", "0", "--audit", "0.5"]
    run = record_run(tmp_path, still_bundle, *words, task=None, size=SIZE, still="phone")
    counts = json.loads((run / "inference.json").read_text())["cache"]
    assert counts["vision_hits"]["1"] >= 2 and counts["reasons"].get("picture_changed"), counts
    assert counts["hits"] + counts["misses"] + counts["no_history"] == counts["inferences"]
    lines = [json.loads(text) for text in (run / "inference.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "reason" in line]
    assert [0] in [line["vision"] for line in lines] and not any(line["prefix"] for line in lines)
    assert replayed(run, still_bundle, capsys)["inputs"]["differing"] == 0
    assert main(["report", str(run / "flight.record"), "--out", str(tmp_path / "page.html")]) == 0
    assert "pictures looked at" in (tmp_path / "page.html").read_text()


def test_an_act_is_served_without_a_task_and_looks_at_a_still_picture_once(still_bundle: Path, tmp_path: Path) -> None:
    aiohttp = pytest.importorskip("aiohttp")
    generator = np.random.default_rng(3)
    observation: dict[str, Any] = {
        f"observation.images.{name}": generator.integers(0, 256, (96, 128, 3), np.uint8) for name in ("laptop", "phone")
    }
    observation["observation.state"] = np.zeros(6, np.float32)
    np.savez(tmp_path / "in.npz", **observation)
    words = ["--observation", str(tmp_path / "in.npz"), "--out", str(tmp_path / "out.npz"), "--threads", "1"]
    assert main(["infer", "--bundle", str(still_bundle), *words]) == 0
    (tmp_path / "run").mkdir(mode=0o700)
    with served(still_bundle, tmp_path / "run", ["--cache", "still"]) as service:

        async def ask() -> Any:
            async with aiohttp.ClientSession() as session, session.ws_connect(service.url + "/") as socket:
                await socket.receive(timeout=EVENT_S)
                answers = []
                for _ in range(2):
                    await socket.send_bytes(encode(observation))
                    answers.append(decode((await socket.receive(timeout=EVENT_S)).data, 1 << 24))
                return answers

        answers = asyncio.run(ask())
        assert b"vla_serve_cache_hits_total 1\n" in service.get("/metrics")[1]
        model = json.loads(service.get("/v2/models/policy")[1])
    with np.load(tmp_path / "out.npz") as made:
        assert [answer["actions"].tobytes() for answer in answers] == [made["action"].tobytes()] * 2
    assert [item["name"] for item in model["inputs"]] == [*observation], "no task is asked for"


@pytest.mark.skipif(FAULT is not None, reason=str(FAULT))
@pytest.mark.parametrize("kind", ["blend", "ensemble"])
def test_an_act_moves_the_simulated_arm(act_bundle: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--seed", "3", "--seconds", "2", "--threads", "1", "--handover", kind, "--json"]
    assert main(["lockstep", "--bundle", str(act_bundle), *words]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["states"].get("moving", 0) > 0, told


def test_the_hand_over_of_an_act_is_its_checkpoints_ensemble_or_a_blend(act_bundle: Path) -> None:
    def own(coefficient: float | None) -> Any:
        manifest = open_bundle(act_bundle).manifest
        policy = replace(manifest.policy, ensemble_coefficient=coefficient)
        return handover_of(None, None, replace(manifest, policy=policy))

    assert own(None).kind is HandOver.BLEND
    assert (own(0.05).kind, own(0.05).coefficient) == (HandOver.ENSEMBLE, 0.05)
    asked = handover_of("ensemble", None, open_bundle(act_bundle).manifest)
    assert asked.coefficient == ENSEMBLE_COEFFICIENT, "LeRobot's usual one"


def test_a_relative_policy_runs_with_an_empty_task_and_its_record_is_replayed(
    relative_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = ["--record-inputs", str(tmp_path / "inputs.rec")]
    run = record_run(tmp_path, relative_bundle, *inputs, task="")
    told = replayed(run, relative_bundle, capsys)
    assert told["differing"] == 0 and told["chunks"] >= 1
    assert told["inputs"]["inferences"] >= 2 and told["inputs"]["differing"] == 0 == told["inputs"]["worst"]
