# SPDX-License-Identifier: Apache-2.0
"""ACT on a DINOv2 as a bundle: the torch policy's chunks from raw pictures, in float32, float16 and INT8, and the
tokens of a still picture kept exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.export.test_export_act import ONE, close, save, seen
from tests.policies.act.act_checkpoints import dinov2_checkpoint, dinov2_observations

from vla_edge.benchmarks.lerobot_subject import LerobotSubject
from vla_edge.benchmarks.subject import FRESH, SubjectSpec
from vla_edge.benchmarks.torch_subject import TorchSubject
from vla_edge.bundle import Programme, open_bundle
from vla_edge.calibration.precision.action_error import ActionErrorBound
from vla_edge.engines.engine import load_engine
from vla_edge.engines.tensorrt.trt_lint import lint_bundle
from vla_edge.errors import ConfigError
from vla_edge.export.assemble import ExportRequest, export_bundle
from vla_edge.export.precision import PrecisionRequest, requantise
from vla_edge.policies.families import load_policy
from vla_edge.runtime.command import main as runtime
from vla_edge.runtime.inference.cache import CacheMode, Reason
from vla_edge.runtime.inference.scene_gate import GateSettings
from vla_edge.runtime.inference.session import InferenceRequest, PolicySession, SessionOptions


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoint and its float32 bundle."""
    place = tmp_path_factory.mktemp("dinov2")
    export_bundle(ExportRequest(dinov2_checkpoint(place / "act"), place / "bundle", threads=1), lambda _: None)
    return place


def chunk(session: PolicySession, raw: dict[str, np.ndarray]) -> np.ndarray:
    result = session.infer(InferenceRequest(seen(raw), 0))
    assert result is not None
    return result.actions


def test_chunks_from_raw_pictures_equal_the_torch_policys(place: Path) -> None:
    policy = load_policy(place / "act")
    session = PolicySession(open_bundle(place / "bundle"), load_engine("ort", ONE))
    for raw in dinov2_observations():
        wanted = policy.postprocess(policy.predict_action_chunk(policy.preprocess(raw)))[0].numpy()
        close(chunk(session, raw), wanted)


def test_the_cut_is_acts(place: Path) -> None:
    bundle = open_bundle(place / "bundle")
    assert bundle.manifest.programme == Programme("backbone", (), ("decode",))
    assert bundle.manifest.policy.tokens_per_image == 2 * 3
    assert bundle.manifest.checkpoint["config"]["vision_backbone"] == "dinov2_vits14"
    nodes = [node.name for node in onnx.load_from_string(bundle.graph("backbone").model).graph.node]
    assert "patches/project" in nodes and "layer11/mlp/down" in nodes and not [n for n in nodes if "stage" in n]
    lint_bundle(bundle)


def test_tokens_of_a_still_picture_are_kept_exactly(place: Path) -> None:
    """The state moves and one camera's picture changes: the other's graph does not run, the chunk is the same."""
    gate = GateSettings("pooled", 0.9, 0.0, 0.0)
    bundle = open_bundle(place / "bundle")
    kept = PolicySession(bundle, load_engine("ort", ONE), SessionOptions(CacheMode.STILL, gate=gate))
    fresh = PolicySession(bundle, load_engine("ort", ONE))
    first, second, third = dinov2_observations()[:3]
    moved = {**first, "observation.state": second["observation.state"]}
    half = {**third, "observation.images.front": first["observation.images.front"]}
    looked = []
    for number, raw in enumerate((first, moved, half)):
        ours, theirs = (session.infer(InferenceRequest(seen(raw, number), number)) for session in (kept, fresh))
        assert ours is not None and theirs is not None
        np.testing.assert_array_equal(ours.actions, theirs.actions)
        looked.append((ours.decision.reason, ours.decision.look))
    assert looked == [(Reason.NO_HISTORY, (0, 1)), (Reason.REUSED, ()), (Reason.PICTURE_CHANGED, (1,))]


@pytest.mark.parametrize(("precision", "backend"), [("fp16", "ort-cuda"), ("int8", "ort")])
def test_fewer_bits_keep_the_chunk_near(precision: str, backend: str, place: Path, tmp_path: Path) -> None:
    bound = ActionErrorBound(0.05, 0.99)
    request = PrecisionRequest(precision, backend, frames=2, held_out=1, threads=1, bound=bound)
    manifest = requantise(place / "bundle", tmp_path / precision, request, lambda _: None)
    assert manifest.precision["graphs"]["backbone"].startswith(precision)
    assert manifest.precision["error"]["cosine"] > 0.99


def test_infer_and_the_bench_take_it_and_lerobot_is_not_asked(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw, out = dinov2_observations()[0], tmp_path / "out.npz"
    words = ["infer", "--bundle", str(place / "bundle"), "--out", str(out), "--threads", "1"]
    assert runtime([*words, "--observation", str(save(tmp_path / "in.npz", raw))]) == 0
    with np.load(out) as content:
        close(content["action"], chunk(PolicySession(open_bundle(place / "bundle"), load_engine("ort", ONE)), raw))
    large = {**raw, "observation.images.front": np.zeros((84, 84, 3), np.uint8)}
    assert runtime([*words, "--observation", str(save(tmp_path / "large.npz", large))]) == 2
    assert "expected uint8 [28, 42, 3]" in capsys.readouterr().err
    spec = SubjectSpec("torch", "torch", place / "act", "torch", 1, place / "bundle")
    assert TorchSubject(spec).run(FRESH, 0)["network"] > 0
    with pytest.raises(ConfigError, match="vision_backbone dinov2_vits14 in .* is not LeRobot's"):
        LerobotSubject(spec)
