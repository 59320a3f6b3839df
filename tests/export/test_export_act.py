# SPDX-License-Identifier: Apache-2.0
"""ACT checkpoints as bundles: the same chunks from raw pictures, tokens of a still picture kept, no text, no noise."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.policies.act.act_checkpoints import checkpoint, expected, observations

from vla_edge.bundle import Programme, open_bundle
from vla_edge.camera_names import short_name
from vla_edge.contract import Frame, JointReading, Observation
from vla_edge.engines.engine import EngineOptions, load_engine
from vla_edge.engines.tensorrt.trt_lint import lint_bundle
from vla_edge.errors import ConfigError, ObservationError
from vla_edge.export.assemble import ExportRequest, export_bundle
from vla_edge.export.command import main as export_engines
from vla_edge.runtime.command import main as runtime
from vla_edge.runtime.control.handover import handover_of
from vla_edge.runtime.inference.cache import CacheMode, Reason
from vla_edge.runtime.inference.scene_gate import NO_SIMILARITY, GateSettings
from vla_edge.runtime.inference.session import InferenceRequest, PolicySession, SessionOptions
from vla_edge.runtime.inference.shadow_audit import ShadowAudit
from vla_edge.trials.deploy_check import check_deployment
from vla_edge.trials.lockstep import LockstepOptions
from vla_edge.trials.reach_task import SessionPlanner

ONE = EngineOptions(threads=1, spin=False)
TOLERANCE = 1e-4
"""As of every export: ten times the rounding of another order of sums."""


def exported(place: Path, name: str, version: str = "061") -> Path:
    folder = checkpoint(place / name, name, version)
    export_bundle(ExportRequest(folder, place / f"{name}-bundle", threads=1), lambda _: None)
    return place / f"{name}-bundle"


@pytest.fixture(scope="module")
def act_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("act"), "resnet18")


def seen(raw: dict[str, np.ndarray], number: int = 0, task: str = "") -> Observation:
    frames = {key: Frame(key, value, number, number) for key, value in raw.items() if value.ndim == 3}
    return Observation(number, frames, JointReading(number, number, raw["observation.state"]), task)


def close(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert np.abs(ours - theirs).max() <= TOLERANCE * np.abs(theirs).max()


@pytest.mark.parametrize(
    ("name", "version"), [*((name, "061") for name in ("pre-norm", "no-vae", "dilated", "scaled")), ("resnet18", "044")]
)
def test_chunks_from_raw_pictures_equal_lerobots(name: str, version: str, tmp_path: Path) -> None:
    session = PolicySession(open_bundle(exported(tmp_path, name, version)), load_engine("ort", ONE))
    for raw, chunk in zip(observations(), expected(name, version)[0]):
        result = session.infer(InferenceRequest(seen(raw), 0))
        assert result is not None and result.noise is None and result.draw is None
        close(result.actions, chunk)


def test_the_manifest_says_what_the_policy_is_and_has_no_text(act_bundle: Path) -> None:
    manifest = open_bundle(act_bundle).manifest
    assert manifest.programme == Programme("backbone", (), ("decode",))
    assert (manifest.policy.type, manifest.policy.n_action_steps, manifest.tokenizer.file) == ("act", 20, "")
    assert not (act_bundle / "tokenizer.json").exists()
    assert max(manifest.parity["graphs"].values()) < TOLERANCE
    assert [item.mode for item in manifest.normalization] == ["MEAN_STD"] * 4
    assert manifest.checkpoint["config"]["type"] == "act"


def test_tensorrt_would_read_its_graphs(act_bundle: Path) -> None:
    lint_bundle(open_bundle(act_bundle))


def test_what_a_bundle_shows_of_act_is_what_it_has(act_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export_engines(["--inspect", str(act_bundle)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "language │ none" in shown and "20 actions, 20 executed, in one pass" in shown


def test_tokens_of_a_still_picture_are_kept_exactly(act_bundle: Path) -> None:
    """The state moves and one camera's picture changes: the other's graph does not run, the chunk is the same."""
    gate = GateSettings("pooled", 0.9, 0.0, 0.0)
    kept = PolicySession(open_bundle(act_bundle), load_engine("ort", ONE), SessionOptions(CacheMode.STILL, gate=gate))
    fresh = PolicySession(open_bundle(act_bundle), load_engine("ort", ONE))
    first, second = observations()[:2]
    states = [item["observation.state"] for item in observations()]
    moved = {**first, "observation.state": states[1]}
    half = {**moved, "observation.images.wrist": second["observation.images.wrist"], "observation.state": states[2]}
    looked = []
    for number, raw in enumerate((first, moved, half)):
        results = [
            session.infer(InferenceRequest(seen(raw, number, f"text {number}"), number)) for session in (kept, fresh)
        ]
        assert results[0] is not None and results[1] is not None
        np.testing.assert_array_equal(results[0].actions, results[1].actions)
        looked.append((results[0].decision.reason, results[0].decision.look))
    assert looked == [(Reason.NO_HISTORY, (0, 1)), (Reason.REUSED, ()), (Reason.PICTURE_CHANGED, (1,))]


def test_a_chunk_with_one_cameras_kept_tokens_is_audited_and_the_limits_are_tightened(act_bundle: Path) -> None:
    """The front picture changes within the limits, the wrist's beyond them."""
    bundle = open_bundle(act_bundle)
    gate = GateSettings(NO_SIMILARITY, 1.0, 20.0, 20.0, bound=1e-9)
    session = PolicySession(bundle, load_engine("ort", ONE), SessionOptions(CacheMode.STILL, gate=gate))
    audit = ShadowAudit(session, share=1.0)
    raw = observations()[0]
    front, wrist = (name for name in raw if "images" in name)
    changed = {**raw, front: raw[front] ^ 1, wrist: np.zeros_like(raw[wrist])}
    for number, (now, looked, due) in enumerate(((raw, (0, 1), False), (raw, (), True), (changed, (1,), True))):
        request = InferenceRequest(seen(now, number), number)
        result = session.infer(request)
        assert result is not None and (result.decision.look, audit.due(result)) == (looked, due)
        report = audit.run(request, result) if due and looked else None
    assert report is not None and report.error > 0
    assert report.sentence().endswith("limits tightened to still 10/10 grey levels")


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        (CacheMode.STILL, "needs a calibrated bundle.*vla-calibrate gate, or choose --cache off"),
        (CacheMode.GATED, "this policy has no prefix that a gate could judge; choose --cache still"),
        (CacheMode.DELTA, "this policy has no prefix that a gate could judge; choose --cache still"),
    ],
)
def test_a_cache_that_the_policy_cannot_have_is_refused_by_what_it_lacks(
    act_bundle: Path, mode: CacheMode, words: str
) -> None:
    with pytest.raises(ConfigError, match=f"--cache {mode.value}:? {words}"):
        PolicySession(open_bundle(act_bundle), load_engine("ort", ONE), SessionOptions(mode))


@pytest.mark.parametrize("cache", [[], ["--cache", "still"]])
def test_a_refresh_beside_one_pass_is_refused_before_limits_are_asked_for(
    act_bundle: Path, tmp_path: Path, cache: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["inference", "--bundle", str(act_bundle), "--run-dir", str(tmp_path / "run"), "--refresh", "beside"]
    cameras = [f"--camera={short_name(c.source)}={i}" for i, c in enumerate(open_bundle(act_bundle).manifest.cameras)]
    assert runtime([*words, "--nice", "0", *cameras, *cache]) == 2
    told = capsys.readouterr().err
    assert "makes its chunk in one pass, nothing can be refreshed beside it; choose --refresh front" in told


def save(file: Path, raw: dict[str, np.ndarray], **more: object) -> Path:
    np.savez(file, **raw, **more)  # type: ignore[arg-type]
    return file


def test_infer_needs_no_task_and_takes_no_noise(
    act_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw, out = observations()[0], tmp_path / "out.npz"
    words = ["infer", "--bundle", str(act_bundle), "--out", str(out), "--threads", "1", "--observation"]
    assert runtime([*words, str(save(tmp_path / "in.npz", raw))]) == 0
    with np.load(out) as content:
        close(content["action"], expected("resnet18")[0][0])
    assert runtime([*words, str(save(tmp_path / "text.npz", raw, task="any"))]) == 0
    noise = np.zeros((20, 6), np.float32)
    assert runtime([*words, str(save(tmp_path / "noise.npz", raw, noise=noise))]) == 2
    assert "makes its chunk in one pass, leave it out" in capsys.readouterr().err
    assert runtime([*words, str(tmp_path / "in.npz"), "--flow-steps", "2"]) == 2
    assert "steps is 2; this bundle takes no other than 1" in capsys.readouterr().err


def test_the_deployment_checks_know_act(act_bundle: Path) -> None:
    items = {item.name: item for item in check_deployment(act_bundle, None, None, 30.0, 1)}
    assert items.pop("speed").state != "not run"  # whether it passes is the machine's
    assert not [item for item in items.values() if item.state == "failed"], items
    assert items["instruction"].found == "the policy reads none"


def test_the_robots_ensemble_is_lerobots_when_it_plans_at_every_action(tmp_path: Path) -> None:
    bundle = open_bundle(exported(tmp_path, "ensemble"))
    planner = SessionPlanner(bundle, load_engine("ort", ONE))
    handover = handover_of(None, None, bundle.manifest)
    planner.reset(0, LockstepOptions(planner.sizes, handover=handover))
    for tick, (raw, action) in enumerate(zip(observations(), expected("ensemble")[1])):
        planned = planner.plan(seen(raw, tick), tick)
        assert len(planned) == bundle.manifest.policy.chunk_size
        close(planned[0], action)


def test_a_missing_camera_is_refused_by_name(act_bundle: Path) -> None:
    session = PolicySession(open_bundle(act_bundle), load_engine("ort", ONE))
    raw = {key: value for key, value in observations()[0].items() if "wrist" not in key}
    with pytest.raises(ObservationError, match="wrist.*needs all its cameras"):
        session.infer(InferenceRequest(seen(raw), 0))


def test_cameras_of_two_sizes_are_refused(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "act")
    content = json.loads((folder / "config.json").read_text())
    content["input_features"]["observation.images.wrist"]["shape"] = [3, 64, 96]
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="one size for all"):
        export_bundle(ExportRequest(folder, tmp_path / "out"), lambda _: None)
    assert not (tmp_path / "out").exists()
