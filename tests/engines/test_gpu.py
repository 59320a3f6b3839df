# SPDX-License-Identifier: Apache-2.0
"""What only a GPU can show (`make gpu`): engine files against ONNX Runtime's chunk, the captured loop against single
steps, overlap, threads. On a machine with torch but without TensorRT, `-p tests.engines.torch_kernels` puts torch's
kernels in
its place. What is missing here is skipped by name."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from vla_edge.bundle import Bundle, open_bundle
from vla_edge.calibration.precision.action_error import ActionErrorBound
from vla_edge.contract import Frame, JointReading, Observation
from vla_edge.engines.engine import EngineOptions, load_engine
from vla_edge.engines.flow_loop import FlowRequest, Inpaint, PythonLoop
from vla_edge.engines.tensorrt.captured_loop import CudaGraphLoop
from vla_edge.engines.tensorrt.cuda import open_cuda, require_gpu
from vla_edge.engines.tensorrt.engine_build import BuildOptions, build_engines
from vla_edge.engines.tensorrt.trt_engine import TrtEngine, open_tensorrt
from vla_edge.errors import EngineError
from vla_edge.export.precision import PrecisionRequest, requantise
from vla_edge.runtime.inference.graphs import BoundGraphs
from vla_edge.runtime.inference.session import InferenceRequest, PolicySession, SessionOptions

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(1800)]
ROOT = Path(__file__).resolve().parents[2]
FP32_TOLERANCE = 2e-3
"""Share of a tensor's largest value: float32 without TF32, other summation orders, ten steps."""
COSINE = 0.999
INT8_COSINE = 0.99
"""Two arithmetics of the same INT8 graphs on random weights, which forget no error."""
JOINT_ERROR = 0.005
"""95th percentile of the error per joint, share of the joint's range in the chunk, for a trained policy."""


def prepared(source: Path, precision: str, path: Path) -> Bundle:
    """The bundle in a precision with engine files of this machine."""
    try:
        require_gpu()
    except EngineError as error:
        pytest.skip(str(error))
    if precision == "fp32":
        shutil.copytree(source, path)
    else:
        loose = ActionErrorBound(joint_p95=0.1, cosine=0.99)
        request = PrecisionRequest(precision, "tensorrt", bound=loose, frames=4, held_out=2)
        requantise(source, path, request, lambda step: None)
    made = open_bundle(path)
    engines = build_engines(made, BuildOptions(), lambda step: None, open_cuda())
    for built in engines:
        print(f"{precision} {built.sidecar.graph}: layers {dict(built.sidecar.layers)}")
    if precision == "int8":
        assert any(built.int8_share > 0 for built in engines), "no layer with matrix products reads INT8"
    return made


@pytest.fixture(scope="module", params=["fp32", "fp16", "int8"])
def bundle(request: pytest.FixtureRequest, golden_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The golden bundle (random weights) in each precision."""
    return prepared(golden_bundle, request.param, tmp_path_factory.mktemp("gpu") / request.param)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return prepared(ROOT / "examples" / "reach-cube" / "bundle", "fp16", tmp_path_factory.mktemp("trained") / "fp16")


@pytest.fixture(scope="module")
def engine(bundle: Bundle) -> TrtEngine:
    return open_tensorrt("tensorrt")


def requested(bundle: Bundle) -> str:
    return str(bundle.manifest.precision["requested"])


def observation(bundle: Bundle, seed: int) -> Observation:
    generator = np.random.default_rng(seed)
    frames = {
        item.name: Frame(item.name, generator.integers(0, 256, (item.height, item.width, 3), dtype=np.uint8), 0, 0)
        for item in bundle.manifest.cameras
    }
    state = generator.normal(0, 10, bundle.manifest.policy.state_dim).astype(np.float32)
    return Observation(0, frames, JointReading(0, 0, state), "Stack the blocks")


def flow_of(bundle: Bundle, seed: int = 1) -> FlowRequest:
    policy = bundle.manifest.policy
    noise = np.random.default_rng(seed).standard_normal((policy.chunk_size, policy.max_action_dim)).astype(np.float32)
    return FlowRequest(policy.num_steps, noise)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.dot(a.ravel(), b.ravel()) / (np.linalg.norm(a) * np.linalg.norm(b)))


def test_every_graph_gives_what_onnx_runtime_gives_which_export_compared_with_torch(
    bundle: Bundle, engine: TrtEngine
) -> None:
    if requested(bundle) != "fp32":
        pytest.skip("graph by graph in float32; the others are judged by the chunk")
    ours, theirs = BoundGraphs(bundle, engine), BoundGraphs(bundle, load_engine("ort", EngineOptions(spin=False)))
    session = PolicySession(bundle, load_engine("ort", EngineOptions(spin=False)))
    session.infer(InferenceRequest(observation(bundle, 3), 0))
    inputs = session.graphs.buffers
    for name in ours.programme.order():
        for graphs in (ours, theirs):
            for tensor in graphs.loaded(name).inputs:
                graphs.buffers[tensor][...] = inputs[tensor]
            if name == "vision":
                graphs.see(0)
            else:
                graphs.loaded(name).run()
        for tensor in ours.loaded(name).outputs:
            if tensor == "tokens":
                continue
            found, wanted = ours.buffers[tensor], theirs.buffers[tensor]
            assert np.abs(found - wanted).max() <= FP32_TOLERANCE * max(np.abs(wanted).max(), 1e-3), f"{name}: {tensor}"
    tokens = theirs.buffers["image_tokens"]
    np.testing.assert_allclose(ours.buffers["image_tokens"], tokens, atol=FP32_TOLERANCE * float(np.abs(tokens).max()))


def test_the_chunk_stays_within_its_bound_of_the_cpus(bundle: Bundle, engine: TrtEngine) -> None:
    """In INT8 of the same quantised graphs (their error against float32 was judged when the bundle was made)."""
    session = PolicySession(bundle, engine, SessionOptions(seed=3))
    cpu = load_engine("ort-python", EngineOptions(spin=False, fuse=False))
    expected = PolicySession(bundle, cpu, SessionOptions(seed=3))
    for seed in range(4):
        request = InferenceRequest(observation(bundle, seed), seed)
        ours, theirs = session.infer(request), expected.infer(request)
        assert ours is not None and theirs is not None
        assert cosine(ours.latent, theirs.latent) >= (INT8_COSINE if requested(bundle) == "int8" else COSINE)


def test_a_trained_policys_actions_in_half_precision_are_the_cpus(trained: Bundle) -> None:
    session = PolicySession(trained, open_tensorrt("tensorrt"), SessionOptions(seed=3))
    reference = open_bundle(ROOT / "examples" / "reach-cube" / "bundle")
    expected = PolicySession(reference, load_engine("ort", EngineOptions(spin=False)), SessionOptions(seed=3))
    for seed in range(4):
        request = InferenceRequest(observation(trained, seed), seed)
        ours, theirs = session.infer(request), expected.infer(request)
        assert ours is not None and theirs is not None
        error = np.percentile(np.abs(ours.actions - theirs.actions), 95, axis=0)
        assert (error <= JOINT_ERROR * np.ptp(theirs.actions, axis=0)).all()


def test_the_captured_loop_equals_the_loop_step_by_step(bundle: Bundle, engine: TrtEngine) -> None:
    session = PolicySession(bundle, engine)
    session.infer(InferenceRequest(observation(bundle, 3), 0))
    flow = flow_of(bundle)
    reference = PythonLoop(session.graphs.flow(session.preparer.tables))
    reference.encode(True)
    shape = flow.noise.shape
    target = np.random.default_rng(5).standard_normal(shape).astype(np.float32)
    tie = Inpaint(target, np.linspace(1, 0, shape[0], dtype=np.float32))
    signal = np.zeros(1, np.int32)
    session.loop.encode(True)
    for request in (flow, FlowRequest(flow.steps, flow.noise, tie, signal), FlowRequest(3, flow.noise, None, signal)):
        ours, theirs = session.loop.denoise(request).latent, reference.denoise(request).latent
        np.testing.assert_allclose(ours, theirs, atol=1e-4)  # type: ignore[arg-type]
        np.testing.assert_array_equal(ours, session.loop.denoise(request).latent)  # type: ignore[arg-type]


def test_a_prefix_refreshed_beside_the_loop_disturbs_neither(bundle: Bundle, engine: TrtEngine) -> None:
    """A race would change bits: the loop's result beside a refresh is compared with its result alone, 200 times."""
    session = PolicySession(bundle, engine)
    loop = session.loop
    assert isinstance(loop, CudaGraphLoop)
    session.infer(InferenceRequest(observation(bundle, 3), 0))
    flow = flow_of(bundle)
    for _ in range(200):
        loop.encode(True)
        alone = loop.denoise(flow).latent
        loop.start_refresh()
        np.testing.assert_array_equal(loop.denoise(flow).latent, alone)
        loop.adopt()
        loop.encode(False)
        np.testing.assert_array_equal(loop.denoise(flow).latent, alone)


def test_sessions_share_engines_and_work_on_threads_of_their_own(bundle: Bundle, engine: TrtEngine) -> None:
    first = PolicySession(bundle, engine, SessionOptions(seed=3))
    request = InferenceRequest(observation(bundle, 3), 0)
    wanted, found = first.infer(request), []

    def serve() -> None:
        found.append(PolicySession(bundle, engine, SessionOptions(seed=3)).infer(request))

    worker = threading.Thread(target=serve)
    worker.start()
    worker.join()
    assert wanted is not None and len(found) == 1 and found[0] is not None
    np.testing.assert_array_equal(found[0].latent, wanted.latent)


@pytest.mark.parametrize("name", ["ort-cuda", "ort-tensorrt"])
def test_onnx_runtimes_gpu_providers_replay_their_graphs_with_the_same_chunk(bundle: Bundle, name: str) -> None:
    try:
        device = load_engine(name)
    except EngineError as error:
        pytest.skip(str(error))
    session = PolicySession(bundle, device, SessionOptions(seed=3))
    reference = PolicySession(bundle, load_engine("ort", EngineOptions(spin=False)), SessionOptions(seed=3))
    for seed in range(4):
        request = InferenceRequest(observation(bundle, seed), seed)
        ours, theirs = session.infer(request), reference.infer(request)
        assert ours is not None and theirs is not None and cosine(ours.latent, theirs.latent) >= COSINE


@pytest.mark.skipif(shutil.which("compute-sanitizer") is None, reason="no compute-sanitizer on this machine")
def test_compute_sanitizer_finds_no_bad_access(bundle: Bundle) -> None:
    if requested(bundle) != "fp16":
        pytest.skip("once is enough")
    race = [sys.executable, str(ROOT / "scripts" / "device_run.py"), "--step", "race", "--rounds", "2"]
    ran = subprocess.run(
        ["compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "3", *race],
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]
