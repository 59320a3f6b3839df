# SPDX-License-Identifier: Apache-2.0
"""A bundle's graphs run as its manifest says: bundles written before programmes, and a family that is not SmolVLA."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file, save
from tests.runtime.inference.test_bundle_fit import edit_manifest
from tests.runtime.inference.test_session import GOLDEN, observation_of

from vla_edge.bundle import (
    MANIFEST,
    TABLES,
    CameraSpec,
    GraphSpec,
    Manifest,
    PolicySpec,
    Programme,
    TensorSpec,
    TokenizerSpec,
    file_sha256,
    open_bundle,
    smolvla_programme,
    write_manifest,
)
from vla_edge.contract import Frame, JointReading, Observation
from vla_edge.engines.engine import EngineOptions, load_engine
from vla_edge.engines.flow_loop import TIE, Inpaint
from vla_edge.errors import BundleError, ConfigError
from vla_edge.runtime.inference.bundle_fit import check_fit
from vla_edge.runtime.inference.cache import CacheMode, Reason
from vla_edge.runtime.inference.scene_gate import GateSettings, read_gate
from vla_edge.runtime.inference.session import InferenceRequest, PolicySession, SessionOptions

DATA = Path(__file__).resolve().parents[2] / "data"
CAMERAS = ("observation.images.left", "observation.images.right")
SIDE, TOKENS, WIDTH, STATE, CHUNK, JOINTS = 4, 2, 5, 3, 4, 2
ONE = EngineOptions(threads=1, spin=False)


def test_a_manifest_without_a_programme_is_smolvlas(tmp_path: Path) -> None:
    """tests/data/manifest-without-programme.json is that of examples/reach-cube as it was before programmes."""
    shutil.copy(DATA / "manifest-without-programme.json", tmp_path / MANIFEST)
    bundle = open_bundle(tmp_path)
    check_fit(bundle)
    assert bundle.manifest.programme == Programme("vision", ("prefix",), ("state",), "expert")
    assert smolvla_programme(["vision", "delta", "delta_kv"]).correct == ("delta_kv", "delta")


def test_a_calibrated_manifest_of_before_opens_with_its_gate(tmp_path: Path) -> None:
    """That of the golden bundle, written by `vla-calibrate gate` of commit 35ebfe7: its limits are called guard_*."""
    shutil.copy(DATA / "manifest-calibrated-35ebfe7.json", tmp_path / MANIFEST)
    bundle = open_bundle(tmp_path)
    check_fit(bundle)
    gate = bundle.manifest.gate
    assert read_gate(bundle) == GateSettings(
        "pooled", gate["threshold"], gate["guard_mean"], gate["guard_worst"], max_age_s=0.8, bound=0.05
    )
    parity = bundle.manifest.parity
    assert parity["graphs"]["chunk"] < parity["tolerance"] and "stages" not in parity, "graphs were called stages then"


def test_an_exported_bundle_states_its_programme_and_runs_the_same_without(golden_bundle: Path, tmp_path: Path) -> None:
    assert json.loads((golden_bundle / MANIFEST).read_text())["programme"]["step"] == "expert"
    shutil.copytree(golden_bundle, tmp_path / "old")
    edit_manifest(tmp_path / "old", lambda content: content.pop("programme"))
    with np.load(GOLDEN, allow_pickle=False) as recorded:
        observation = observation_of(recorded)
    chunks = []
    for place in (golden_bundle, tmp_path / "old"):
        result = PolicySession(open_bundle(place), load_engine("ort", ONE)).infer(InferenceRequest(observation, 0))
        assert result is not None
        chunks.append(result.actions)
    np.testing.assert_array_equal(chunks[0], chunks[1])


def reach_cube(folder: Path) -> Observation:
    """An observation of the example's two cameras."""
    manifest, random = open_bundle(folder).manifest, np.random.default_rng(0)
    frames = {
        item.name: Frame(item.name, random.integers(0, 256, (item.height, item.width, 3), dtype=np.uint8), 0, 0)
        for item in manifest.cameras
    }
    return Observation(0, frames, JointReading(0, 0, np.zeros(manifest.policy.state_dim, np.float32)), "reach")


@pytest.mark.parametrize("backend", ["ort", "ort-python", "openvino"])
def test_a_bundle_whose_steps_take_no_tie_gives_the_chunk_of_todays_export(tmp_path: Path, backend: str) -> None:
    """examples/reach-cube/bundle was written when `expert` had one row of time bias and no tie."""
    if backend == "openvino":
        pytest.importorskip("openvino")
    from vla_edge.export.assemble import ExportRequest, export_bundle

    example = DATA.parents[1] / "examples" / "reach-cube"
    export_bundle(ExportRequest(example / "checkpoint", tmp_path / "new", threads=1), lambda step: None)
    old, new = open_bundle(example / "bundle"), open_bundle(tmp_path / "new")
    inputs = [{item.name for item in made.manifest.graphs["expert"].inputs} for made in (old, new)]
    assert TIE not in inputs[0] and TIE in inputs[1]
    assert new.manifest.policy.key_rows % 8 == 0 and old.manifest.policy.key_rows == 0
    policy = new.manifest.policy
    tie = Inpaint(
        np.full((policy.chunk_size, policy.max_action_dim), 0.3, np.float32),
        np.linspace(1, 0, policy.chunk_size, dtype=np.float32),
    )
    for inpaint in (None, tie):
        made = [
            PolicySession(bundle, load_engine(backend, ONE)).infer(
                InferenceRequest(reach_cube(example / "bundle"), 0, inpaint=inpaint)
            )
            for bundle in (old, new)
        ]
        assert made[0] is not None and made[1] is not None
        # The same float32 arithmetic with more masked keys: seen 3e-7 and, by OpenVINO, 2e-6.
        np.testing.assert_allclose(made[0].latent, made[1].latent, atol=2e-5)


def test_steps_are_as_long_as_the_bundles_times_say(golden_bundle: Path, tmp_path: Path) -> None:
    """Both loops against the steps taken here by hand, one by one, on the step graph."""
    folder = shutil.copytree(golden_bundle, tmp_path / "uneven")
    times = np.array([1.0, 0.625, 0.125, 0.0], np.float32)
    tables = {**load_file(folder / TABLES), "flow_times.3": times}
    (folder / TABLES).write_bytes(save(tables))
    edit_manifest(folder, lambda content: content["files"].update({TABLES: file_sha256(folder / TABLES)}))
    with np.load(GOLDEN, allow_pickle=False) as recorded:
        observation, noise = observation_of(recorded), np.ascontiguousarray(recorded["noise"][0])
    made = []
    for backend in ("ort", "ort-python"):
        session = PolicySession(open_bundle(folder), load_engine(backend, ONE))
        result = session.infer(InferenceRequest(observation, 0, 3, noise))
        assert result is not None and len(result.timings.step) == 3
        made.append(result.latent)
    buffers, x = session.graphs.buffers, noise
    for index, size in enumerate(np.diff(times)):
        buffers["x"][0], buffers["time_bias"][:], buffers["dt"][:] = x, tables["time_bias.3"][index], size
        session.graphs.loaded("expert").run()
        x = buffers["x_next"][0].copy()
    np.testing.assert_array_equal(made[0], made[1])
    np.testing.assert_array_equal(made[0], x)


def test_every_row_of_a_chunk_has_a_time_and_a_step_of_its_own(golden_bundle: Path) -> None:
    """What the loops of today give every row alike: rows with dt 0 stay where they are tied, the others move."""
    session = PolicySession(open_bundle(golden_bundle), load_engine("ort", ONE))
    with np.load(GOLDEN, allow_pickle=False) as recorded:
        session.infer(InferenceRequest(observation_of(recorded), 0))
    buffers, frozen = session.graphs.buffers, 7
    buffers["x"][:], buffers["target"][:] = 0.5, 0.25
    buffers["weights"][:] = 0
    buffers["weights"][:frozen] = 1
    buffers["dt"][:] = -0.1
    buffers["dt"][:frozen] = 0
    session.graphs.loaded("expert").run()
    moved = buffers["x_next"][0] - 0.5
    np.testing.assert_array_equal(buffers["x_next"][0, :frozen], np.full_like(moved[:frozen], 0.25))
    assert (np.abs(moved[frozen:]).max(axis=1) > 1e-3).all()
    buffers["time_bias"][frozen] += 1
    session.graphs.loaded("expert").run()
    assert not np.allclose(buffers["x_next"][0, frozen] - 0.5, moved[frozen])


def write_graph(
    folder: Path, name: str, inputs: dict[str, tuple[int, ...]], output: tuple[str, tuple[int, ...]], seed: int
) -> tuple[GraphSpec, list[np.ndarray]]:
    """output = sum of flat inputs times a matrix each; the matrices are returned."""
    random = np.random.default_rng(seed)
    size = int(np.prod(output[1]))
    matrices = [random.standard_normal((int(np.prod(shape)), size)).astype(np.float32) for shape in inputs.values()]
    nodes, constants = [], [numpy_helper.from_array(np.array(output[1], np.int64), "shape")]
    for index, (tensor, matrix) in enumerate(zip(inputs, matrices)):
        constants.append(numpy_helper.from_array(matrix, f"w{index}"))
        nodes += [
            helper.make_node("Flatten", [tensor], [f"flat{index}"]),
            helper.make_node("MatMul", [f"flat{index}", f"w{index}"], [f"product{index}"]),
        ]
    nodes += [
        helper.make_node("Sum", [f"product{index}" for index in range(len(matrices))], ["sum"]),
        helper.make_node("Reshape", ["sum", "shape"], [output[0]]),
    ]
    tensors = {**inputs, output[0]: output[1]}
    infos = {key: helper.make_tensor_value_info(key, TensorProto.FLOAT, shape) for key, shape in tensors.items()}
    graph = helper.make_graph(nodes, name, [infos[key] for key in inputs], [infos[output[0]]], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model)
    (folder / f"{name}.onnx").write_bytes(model.SerializeToString())
    specs = {key: TensorSpec(key, shape, "float32") for key, shape in tensors.items()}
    return GraphSpec(f"{name}.onnx", (), tuple(specs[key] for key in inputs), (specs[output[0]],)), matrices


@pytest.fixture
def one_pass(tmp_path: Path) -> tuple[Path, Callable[..., np.ndarray]]:
    """A bundle of a family without prefix, text and steps (as ACT is), and what it computes of pictures and state."""
    slots = len(CAMERAS)
    backbone, (see,) = write_graph(
        tmp_path, "backbone", {"pixels": (1, 3, SIDE, SIDE)}, ("tokens", (1, TOKENS, WIDTH)), 1
    )
    decode, (look, move) = write_graph(
        tmp_path,
        "decode",
        {"image_tokens": (1, slots * TOKENS, WIDTH), "state": (1, STATE)},
        ("chunk", (1, CHUNK, JOINTS)),
        2,
    )
    (tmp_path / TABLES).write_bytes(save({"unused": np.zeros(1, np.float32)}))
    graphs = {"backbone": backbone, "decode": decode}
    manifest = Manifest(
        policy=PolicySpec("act", CHUNK, CHUNK, 1, 1, STATE, JOINTS, STATE, JOINTS, SIDE, SIDE, TOKENS, WIDTH),
        cameras=tuple(CameraSpec(name, name, SIDE, SIDE) for name in CAMERAS),
        joints=("a", "b"),
        joint_units="degrees",
        tokenizer=TokenizerSpec("", 0, "longest", "right", "right", 0, False),
        normalization=(),
        graphs=graphs,
        files={name: file_sha256(tmp_path / name) for name in (TABLES, "backbone.onnx", "decode.onnx")},
        checkpoint={}, parity={}, precision={}, gate={}, tools={},
        programme=Programme("backbone", (), ("decode",)),
    )  # fmt: skip
    write_manifest(tmp_path, manifest)

    def expected(pictures: list[np.ndarray], state: np.ndarray) -> np.ndarray:
        scaled = [picture.transpose(2, 0, 1).astype(np.float32).reshape(1, -1) / 255 * 2 - 1 for picture in pictures]
        tokens = np.concatenate([(picture @ see).reshape(1, TOKENS, WIDTH) for picture in scaled], axis=1)
        return np.asarray((tokens.reshape(1, -1) @ look + state[None] @ move).reshape(CHUNK, JOINTS))

    return tmp_path, expected


def seen(pictures: list[np.ndarray], state: np.ndarray) -> Observation:
    frames = {name: Frame(name, picture, 0, 0) for name, picture in zip(CAMERAS, pictures)}
    return Observation(0, frames, JointReading(0, 0, state), "any words")


@pytest.mark.parametrize("backend", ("ort", "ort-python"))
def test_a_family_without_prefix_and_steps_runs_in_the_same_session(one_pass: Any, backend: str) -> None:
    folder, expected = one_pass
    gate = GateSettings("pooled", 0.9, 1.0, 1.0)
    session = PolicySession(open_bundle(folder), load_engine(backend, ONE), SessionOptions(CacheMode.STILL, gate=gate))
    random = np.random.default_rng(3)
    pictures = [random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) for _ in CAMERAS]
    looked = []
    for number in range(3):
        if number == 2:
            pictures[1] = 255 - pictures[1]
        state = random.standard_normal(STATE).astype(np.float32)
        result = session.infer(InferenceRequest(seen(pictures, state), number))
        assert result is not None
        np.testing.assert_allclose(result.actions, expected(pictures, state), rtol=1e-4, atol=1e-4)
        looked.append((result.decision.reason, result.decision.look))
    assert looked == [(Reason.NO_HISTORY, (0, 1)), (Reason.REUSED, ()), (Reason.PICTURE_CHANGED, (1,))]


def test_a_chunk_of_one_pass_is_tied_to_nothing_and_no_gate_judges_it(one_pass: Any) -> None:
    folder, _ = one_pass
    session = PolicySession(open_bundle(folder), load_engine("ort", ONE))
    tie = Inpaint(np.zeros((CHUNK, JOINTS), np.float32), np.ones(CHUNK, np.float32))
    picture, state = np.zeros((SIDE, SIDE, 3), np.uint8), np.zeros(STATE, np.float32)
    with pytest.raises(ConfigError, match="one pass.*another hand-over"):
        session.infer(InferenceRequest(seen([picture, picture], state), 0, inpaint=tie))
    for policy in (CacheMode.GATED, CacheMode.DELTA):
        with pytest.raises(ConfigError, match=f"--cache {policy.value}: this policy has no prefix.*--cache still"):
            options = SessionOptions(policy, gate=GateSettings("pooled", 0.9, 1.0, 1.0))
            PolicySession(open_bundle(folder), load_engine("ort", ONE), options)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content["programme"].update(scene=["prefix"]), "runs graph prefix 1 times, there is none"),
        (lambda content: content["programme"].update(moment=["decode", "decode"]), "runs graph decode 2 times"),
        (lambda content: content["programme"].update(moment=[]), "makes no action"),
        (lambda content: content["programme"].update(step="decode"), "one scene graph and one moment graph"),
        (lambda content: content["programme"].update(camera="decode", moment=["backbone"]), "decode has pixels not at"),
        (
            lambda content: content["graphs"]["decode"]["inputs"][1].update(name="joints"),
            "decode takes joints, which no graph makes",
        ),
        (lambda content: content["graphs"].update(more=content["graphs"]["decode"]), "graph more has no place"),
    ],
)
def test_a_programme_that_does_not_fit_its_graphs_is_refused(
    one_pass: Any, change: Callable[[dict[str, Any]], Any], words: str
) -> None:
    folder, _ = one_pass
    edit_manifest(folder, change)
    with pytest.raises(BundleError, match=words):
        check_fit(open_bundle(folder))
