# SPDX-License-Identifier: Apache-2.0
"""Plans, sidecars, memory plan and the captured loop's logic, on an emulated GPU (tests/engines/emulated_gpu.py): no
device is
used, and nothing here says how TensorRT behaves. What needs a device is marked gpu in tests/engines/test_gpu.py."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tests.engines.emulated_gpu import FACTS, EmulatedCuda, onnxruntime_tensorrt, stub_driver

from vla_edge import _core
from vla_edge.bundle import Bundle, GraphFile, GraphSpec, open_bundle
from vla_edge.contract import Frame, JointReading, Observation
from vla_edge.engines.engine import EngineOptions, load_engine
from vla_edge.engines.flow_loop import FlowRequest, FlowSignal, Inpaint
from vla_edge.engines.ort import make_session
from vla_edge.engines.ort_device import OrtDeviceGraph
from vla_edge.engines.tensorrt import trt_engine as trt
from vla_edge.engines.tensorrt.captured_loop import CudaGraphLoop
from vla_edge.engines.tensorrt.cuda import require_gpu
from vla_edge.engines.tensorrt.engine_build import BuildOptions, board_plan, build_engines, load_compiler, serialize
from vla_edge.engines.tensorrt.engine_file import Sidecar, engine_folder, l4t_release, onnx_digest
from vla_edge.engines.tensorrt.kernel_audit import int8_share, layer_types
from vla_edge.engines.tensorrt.memory_plan import MB, Board, plan_memory
from vla_edge.engines.tensorrt.trt_engine import DeviceEngine, Scratch, TrtEngine, TrtRun
from vla_edge.engines.tensorrt.trt_lint import find, lint_bundle
from vla_edge.errors import EngineError
from vla_edge.export.command import main as export_engines
from vla_edge.runtime.command import main as vla_runtime
from vla_edge.runtime.inference.cache import CacheMode
from vla_edge.runtime.inference.refresh import Refresh
from vla_edge.runtime.inference.scene_gate import GateSettings
from vla_edge.runtime.inference.session import InferenceRequest, PolicySession, SessionOptions

ROOT = Path(__file__).resolve().parents[2]
FITTING = replace(FACTS, memory=64 << 30)
SAME_KERNELS = 1e-6
"""Both sides run ONNX Runtime on the CPU; graphs with inline weights may be optimised in another order."""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stub_driver(tmp_path_factory.mktemp("stub"))


@pytest.fixture
def cuda(library: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EmulatedCuda]:
    made = EmulatedCuda(library, FITTING)
    monkeypatch.setitem(sys.modules, "tensorrt", onnxruntime_tensorrt(made))
    monkeypatch.setattr(trt, "_driver", lambda: _core.CudaDriver(str(library)))
    yield made
    made.close()


@pytest.fixture
def bundle(golden_bundle: Path, tmp_path: Path) -> Bundle:
    return open_bundle(shutil.copytree(golden_bundle, tmp_path / "bundle"))


@pytest.fixture
def built(bundle: Bundle, cuda: EmulatedCuda) -> Bundle:
    build_engines(bundle, BuildOptions(), lambda step: None, cuda)
    return bundle


def engine_on(cuda: EmulatedCuda) -> TrtEngine:
    return TrtEngine("tensorrt", cuda, load_compiler())


def folder_of(bundle: Bundle) -> Path:
    return engine_folder(bundle.graph("state"), load_compiler())


def observation(bundle: Bundle, seed: int = 4) -> Observation:
    generator = np.random.default_rng(seed)
    frames = {
        item.name: Frame(item.name, generator.integers(0, 256, (item.height, item.width, 3), dtype=np.uint8), 0, 0)
        for item in bundle.manifest.cameras
    }
    state = generator.normal(0, 10, bundle.manifest.policy.state_dim).astype(np.float32)
    return Observation(0, frames, JointReading(0, 0, state), "Stack the blocks")


def test_a_built_bundle_runs_as_captured_graphs_and_gives_the_chunks_of_the_python_loop(
    built: Bundle, cuda: EmulatedCuda
) -> None:
    session = PolicySession(built, engine_on(cuda), SessionOptions(seed=3))
    reference = PolicySession(
        built, load_engine("ort-python", EngineOptions(threads=1, spin=False)), SessionOptions(seed=3)
    )
    assert session.loop.name == "cuda-graph"
    for seed, steps in ((4, None), (5, None), (6, 4)):
        request = InferenceRequest(observation(built, seed), seed, steps)
        ours, theirs = session.infer(request), reference.infer(request)
        assert ours is not None and theirs is not None
        np.testing.assert_allclose(ours.latent, theirs.latent, atol=SAME_KERNELS)
        assert len(ours.timings.step) == len(theirs.timings.step)


def test_signals_and_inpaint_give_what_the_python_loop_gives(built: Bundle, cuda: EmulatedCuda) -> None:
    session = PolicySession(built, engine_on(cuda))
    reference = PolicySession(built, load_engine("ort-python", EngineOptions(threads=1, spin=False)))
    request = InferenceRequest(observation(built), 0)
    session.infer(request)
    reference.infer(request)
    policy = built.manifest.policy
    generator = np.random.default_rng(9)
    noise, target = (
        generator.standard_normal((policy.chunk_size, policy.max_action_dim)).astype(np.float32) for _ in range(2)
    )
    tie = Inpaint(target, np.linspace(1, 0, policy.chunk_size, dtype=np.float32))

    class Hurried:
        """Says FINISH when it is read the second time, which is where the captured loop reads it first."""

        asked = 0

        def __getitem__(self, index: int) -> int:
            self.asked += 1
            return FlowSignal.FINISH if self.asked > 1 else FlowSignal.CONTINUE

    steps = policy.num_steps
    hurried: Any = Hurried()
    for flow, same in (
        (FlowRequest(steps, noise, None, np.zeros(1, np.int32)), None),
        (FlowRequest(steps, noise, None, np.array([FlowSignal.FINISH], np.int32)), hurried),
        (FlowRequest(steps, noise, tie), None),
        (FlowRequest(steps - 1, noise, tie, np.zeros(1, np.int32)), None),
        (FlowRequest(steps, noise), None),
        (FlowRequest(1, noise), None),
    ):
        ours, theirs = session.loop.denoise(flow), reference.loop.denoise(replace(flow, signal=same))
        assert ours.latent is not None and theirs.latent is not None
        np.testing.assert_allclose(ours.latent, theirs.latent, atol=10 * SAME_KERNELS)
        assert len(ours.step_ms) == len(theirs.step_ms)
    assert (
        session.loop.denoise(
            FlowRequest(policy.num_steps, noise, None, np.array([FlowSignal.ABANDON], np.int32))
        ).latent
        is None
    )


def test_a_refresh_on_the_other_side_changes_nothing_until_it_is_adopted(built: Bundle, cuda: EmulatedCuda) -> None:
    session = PolicySession(built, engine_on(cuda))
    loop = session.loop
    assert isinstance(loop, CudaGraphLoop)
    policy = built.manifest.policy
    noise = np.random.default_rng(1).standard_normal((policy.chunk_size, policy.max_action_dim)).astype(np.float32)
    flow = FlowRequest(policy.num_steps, noise)
    session.infer(InferenceRequest(observation(built, 4), 0))
    first = loop.denoise(flow).latent
    session.infer(InferenceRequest(observation(built, 5), 0))
    second = loop.denoise(flow).latent
    assert first is not None and second is not None and np.abs(first - second).max() > 1e-3
    tokens = session.graphs.buffers["image_tokens"]
    tokens += 0.5
    loop.start_refresh()
    np.testing.assert_array_equal(loop.denoise(flow).latent, second)
    loop.adopt()
    loop.encode(False)
    adopted = loop.denoise(flow).latent
    loop.encode(True)
    np.testing.assert_array_equal(loop.denoise(flow).latent, adopted)
    assert adopted is not None and np.abs(adopted - second).max() > 1e-4


def test_a_session_refreshes_the_prefix_beside_its_plans_on_the_other_side(built: Bundle, cuda: EmulatedCuda) -> None:
    """The thread starts it on the low-priority stream and waits there; the plans' stream goes over between two."""
    gate = GateSettings("pooled", threshold=-1, still_mean=0, still_worst=0, max_reuse=1000, max_age_s=1000)
    beside = SessionOptions(CacheMode.STILL, gate=gate, refresh=Refresh.BESIDE, seed=3)
    session = PolicySession(built, engine_on(cuda), beside)
    engine = load_engine("ort-python", EngineOptions(threads=1, spin=False))
    reference = PolicySession(built, engine, beside)
    for number, seed, adopt in ((0, 4, False), (1, 5, False), (2, 5, True), (3, 6, False), (4, 6, True), (5, 6, None)):
        request = InferenceRequest(observation(built, seed), number, adopt=adopt)
        ours, theirs = session.infer(request), reference.infer(request)
        assert ours is not None and theirs is not None and ours.decision == theirs.decision
        np.testing.assert_allclose(ours.latent, theirs.latent, atol=SAME_KERNELS)
        session.settle()
        reference.settle()
    assert session.cache.counts.refreshes == 2 and session.cache.counts.beside == 2


def test_single_runs_copy_inputs_in_and_outputs_out(built: Bundle, cuda: EmulatedCuda) -> None:
    for facts in (FITTING, replace(FITTING, integrated=True)):
        cuda.facts = facts
        engine = engine_on(cuda)
        session = engine.load(built.graph("vision"))
        pixels, tokens = (
            engine.allocate(spec.shape, spec.dtype) for spec in (session.inputs["pixels"], session.outputs["tokens"])
        )
        session.bind_input("pixels", pixels)
        with pytest.raises(EngineError, match="nothing is bound to tokens"):
            session.run()
        session.bind_output("tokens", tokens)
        pixels[:] = np.random.default_rng(2).uniform(-1, 1, pixels.shape)
        session.run()
        assert np.abs(tokens).max() > 0
        with pytest.raises(EngineError, match="not made by this engine"):
            session.bind_input("pixels", np.zeros(pixels.shape, np.float32))


@pytest.mark.parametrize("error", [EngineError, KeyboardInterrupt, ValueError])
def test_a_failed_capture_leaves_the_stream_usable(
    built: Bundle, cuda: EmulatedCuda, error: type[BaseException]
) -> None:
    engine = engine_on(cuda)
    runs = []

    def work() -> None:
        runs.append(1)
        if len(runs) == 2:
            raise error("inside the capture")

    with pytest.raises(error, match="inside the capture"):
        engine.capture(engine.stream, work)
    assert cuda.recording is None
    assert engine.capture(engine.stream, lambda: None) >= 0x900
    assert gc.isenabled()


def test_a_captured_context_keeps_its_addresses_and_stays_in_one_graph(built: Bundle, cuda: EmulatedCuda) -> None:
    engine = engine_on(cuda)
    run = engine.run_of(engine.engine_of(built.graph("expert")), Scratch(cuda.allocate(4096), 4096))
    run.bind("x", cuda.allocate(64))
    engine.capture(engine.stream, lambda: None, [run])
    with pytest.raises(EngineError, match="x is captured at its address"):
        run.bind("x", cuda.allocate(64))
    with pytest.raises(EngineError, match="captured into two graphs"):
        engine.capture(engine.stream, lambda: None, [run])


def test_every_graph_of_the_loop_has_contexts_of_its_own_and_no_address_changes_when_it_runs(
    built: Bundle, cuda: EmulatedCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured: list[tuple[TrtRun, ...]] = []
    before: list[dict[str, int]] = []
    capture = TrtEngine.capture

    def noted(engine: TrtEngine, stream: int, work: Callable[[], None], runs: Sequence[TrtRun] = ()) -> int:
        captured.append(tuple(runs))
        before.extend(dict(run._context.addresses) for run in runs)
        return capture(engine, stream, work, runs)

    monkeypatch.setattr(TrtEngine, "capture", noted)
    session = PolicySession(built, engine_on(cuda))
    contexts = [run for runs in captured for run in runs]
    # Two sides of prefix and state; begin and end without any; two turns and one single step a side; a camera each.
    cameras = len(built.manifest.cameras)
    assert len(captured) == 4 + 2 + 6 + cameras and len(contexts) == len(set(map(id, contexts))) == 4 + 6 + cameras
    made = len(cuda.graphs)
    policy = built.manifest.policy
    for steps in range(policy.min_steps, policy.num_steps + 1):
        session.infer(InferenceRequest(observation(built, steps), steps, steps))
    assert [run._context.addresses for run in contexts] == before
    assert len(cuda.graphs) == made, "a graph was captured after the start"


def test_two_sessions_load_one_engine_and_what_a_session_holds_goes_with_it(
    built: Bundle, cuda: EmulatedCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    deserialized = TrtEngine._deserialized

    def noted(engine: TrtEngine, graph: GraphFile, sidecar: Sidecar) -> DeviceEngine:
        loaded.append(graph.name)
        return deserialized(engine, graph, sidecar)

    monkeypatch.setattr(TrtEngine, "_deserialized", noted)
    engine = engine_on(cuda)
    empty = cuda.held()
    first = PolicySession(built, engine)
    one = cuda.held()
    second = PolicySession(built, engine)
    assert sorted(loaded) == sorted(built.manifest.graphs)
    two, destroyed = cuda.held(), set(cuda.graphs)
    assert two > one > empty
    chunk = second.infer(InferenceRequest(observation(built), 0))
    del first
    gc.collect()
    assert cuda.held() == one and len(cuda.graphs) == len(destroyed) // 2
    again = second.recompute(InferenceRequest(observation(built), 0, noise=chunk.noise if chunk else None))
    assert chunk is not None and again is not None
    np.testing.assert_array_equal(chunk.latent, again.latent)
    del second, chunk, again
    gc.collect()
    assert not cuda.graphs
    # Only the scratch of single and of fixed runs, which belongs to the engine.
    assert cuda.held() == (empty[0] + 2, empty[1])
    del engine
    gc.collect()
    assert cuda.held() == (0, 0)


def test_engine_files_lie_in_a_private_folder_with_sidecars_and_kept_timings(built: Bundle, cuda: EmulatedCuda) -> None:
    folder = folder_of(built)
    assert folder.stat().st_mode & 0o777 == 0o700
    names = {file.name for file in folder.iterdir()}
    graphs = list(built.manifest.graphs)
    assert names == {"timing.cache", *(f"{name}.{end}" for name in graphs for end in ("engine", "json"))}
    assert (folder / "timing.cache").read_bytes() == b"+" * len(graphs)
    for useless in (b"foreign", b"damaged"):
        (folder / "timing.cache").write_bytes(useless)
        build_engines(built, BuildOptions(), lambda step: None, cuda)
        assert not (folder / "timing.cache").read_bytes().startswith(useless)


def test_the_build_tells_its_progress_and_what_was_built(bundle: Bundle, cuda: EmulatedCuda) -> None:
    told: list[str] = []
    made = build_engines(bundle, BuildOptions(), told.append, cuda)
    assert "build expert: tactics 1/2" in told
    assert [engine.sidecar.graph for engine in made] == list(bundle.manifest.graphs)
    assert made[0].sidecar.layers == {"fp32": 1, "products.fp32": 1} and made[0].int8_share == 0


def test_a_graph_tensorrt_refuses_is_named_with_its_node(bundle: Bundle, cuda: EmulatedCuda) -> None:
    graph = bundle.graph("state")
    model = onnx.load_from_string(graph.model)
    model.graph.node.append(onnx.helper.make_node("Det", ["state"], ["nowhere"], name="odd"))
    broken = replace(graph, model=model.SerializeToString())
    with pytest.raises(EngineError, match=r"refuses the graph: node the_node \(Det\): no such layer"):
        serialize(load_compiler(), broken, BuildOptions(), lambda step: None)


IDENTITY = (
    "onnx_sha256",
    "precision_sha256",
    "tensorrt",
    "cuda",
    "driver",
    "os",
    "architecture",
    "l4t",
    "gpu",
    "compute_capability",
    "sm_count",
    "flags",
)


@pytest.mark.parametrize("field", IDENTITY)
def test_every_field_of_the_identity_refuses_an_engine_file_when_it_differs(
    built: Bundle, cuda: EmulatedCuda, field: str
) -> None:
    file = folder_of(built) / "state.json"
    content = json.loads(file.read_text())
    assert set(content["identity"]) == set(IDENTITY)
    engine_on(cuda).load(built.graph("state"))
    before = content["identity"][field]
    content["identity"][field] = {int: 9, list: ["another"], str: "another"}[type(before)]
    file.write_text(json.dumps(content))
    with pytest.raises(EngineError, match=f"state.engine: {field} is .*(another|9).* in the engine file and .* here"):
        engine_on(cuda).load(built.graph("state"))


def test_sessions_of_real_cuda_bindings_live_on_any_thread(golden_bundle: Path, library: Path, tmp_path: Path) -> None:
    """As in the service, where the engine is opened on one thread and sessions are made and used on others; the stub
    driver has a current context for each thread, as the real one does. With one flag for all threads, which is how
    `serve` could not start on any GPU, the second thread finds no context."""
    pytest.importorskip("cuda.bindings")
    script = ROOT / "tests" / "engines" / "threads_on_stub.py"
    bundle = shutil.copytree(golden_bundle, tmp_path / "bundle")
    environment = {**os.environ, "LD_LIBRARY_PATH": str(library.parent)}
    words = [sys.executable, str(script), str(bundle), str(library)]
    ran = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert ran.stdout.split() == ["main", "worker", "same"]
    before = subprocess.run([*words, "one-flag"], env=environment, capture_output=True, text=True)
    assert before.stdout.split() == ["main", "failed", "different"]
    assert "CUDA_ERROR_INVALID_CONTEXT" in before.stderr


def test_what_the_bundle_has_verified_is_not_hashed_again(built: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = built.graph("state")
    assert onnx_digest(graph) == onnx_digest(replace(graph, verified={}))
    hashed: list[int] = []
    real = hashlib.sha256

    def noted(data: Any = b"") -> Any:
        hashed.append(len(data))
        return real(data)

    monkeypatch.setattr(hashlib, "sha256", noted)
    onnx_digest(graph)
    assert hashed == [len(graph.model)]


@pytest.mark.parametrize("field", ["graph", "inputs", "outputs", "engine_sha256", "device_memory", "schema"])
def test_a_sidecar_changed_by_hand_is_refused_with_its_field(built: Bundle, cuda: EmulatedCuda, field: str) -> None:
    file = folder_of(built) / "state.json"
    content = json.loads(file.read_text())
    if field in ("inputs", "outputs"):
        content[field][0]["shape"] = [*content[field][0]["shape"], 1]
    else:
        content[field] = content[field] + 1 if isinstance(content[field], int) else f"{content[field]}x"
    file.write_text(json.dumps(content))
    with pytest.raises(EngineError, match=field):
        engine_on(cuda).load(built.graph("state"))


@pytest.mark.parametrize("field", ["weights", "layers", "identity", "engine_sha256"])
def test_a_missing_or_unknown_field_of_the_sidecar_is_named(built: Bundle, cuda: EmulatedCuda, field: str) -> None:
    file = folder_of(built) / "state.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "surplus": 1}))
    with pytest.raises(EngineError, match="surplus"):
        engine_on(cuda).load(built.graph("state"))
    del content[field]
    file.write_text(json.dumps(content))
    with pytest.raises(EngineError, match=field):
        engine_on(cuda).load(built.graph("state"))
    file.write_text("{")
    with pytest.raises(EngineError, match="not valid JSON"):
        engine_on(cuda).load(built.graph("state"))


def test_one_flipped_bit_of_an_engine_file_is_refused(built: Bundle, cuda: EmulatedCuda) -> None:
    file = folder_of(built) / "state.engine"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(EngineError, match="state.engine: engine_sha256 differs"):
        engine_on(cuda).load(built.graph("state"))


def test_a_folder_that_others_may_write_is_refused(built: Bundle, cuda: EmulatedCuda) -> None:
    os.chmod(folder_of(built), 0o770)
    with pytest.raises(EngineError, match="mode 0700"):
        engine_on(cuda).load(built.graph("state"))


def test_a_bundle_without_engine_files_says_how_to_build_them(bundle: Bundle, cuda: EmulatedCuda) -> None:
    with pytest.raises(EngineError, match="no engine files; build it on this machine: export-engines --bundle"):
        engine_on(cuda).load(bundle.graph("state"))


def test_the_release_of_jetson_linux_is_read(tmp_path: Path) -> None:
    file = tmp_path / "nv_tegra_release"
    file.write_text("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n")
    assert l4t_release(file) == "36.4.3"
    assert l4t_release(tmp_path / "nothing") == ""


def test_the_memory_plan_counts_shared_weights_twice(bundle: Bundle) -> None:
    plan = plan_memory(bundle, Board(8 << 30, integrated=True), 1024 * MB)
    stored = (bundle.path / "graphs" / "weights.bin").stat().st_size
    inline = sum(len(bundle.graph(name).model) for name in bundle.manifest.graphs)
    # weights.bin aligns its tensors, so it is a little larger than what they hold.
    assert sum(plan.weights.values()) - plan.twice <= stored + inline
    assert plan.twice > 0 and plan.fits_build and plan.fits_run and not plan.advice
    assert any("stand in two of them" in line for line in plan.lines())


def test_a_board_that_is_too_small_is_told_what_to_do_before_anything_is_built(
    bundle: Bundle, cuda: EmulatedCuda
) -> None:
    plan = board_plan(bundle, 2, 1024 * MB)
    assert not plan.fits_build and not plan.fits_run
    assert (
        "half-precision" in plan.advice[0]
        and any("--workspace" in line for line in plan.advice)
        and "swap" in "".join(plan.advice)
    )
    cuda.facts = replace(FACTS, memory=1 << 30, integrated=True)
    with pytest.raises(EngineError, match="does not fit.*half-precision.*--force"):
        build_engines(bundle, BuildOptions(), lambda step: None, cuda)
    assert not folder_of(bundle).exists()
    assert len(build_engines(bundle, BuildOptions(force=True), lambda step: None, cuda)) == len(bundle.manifest.graphs)


def test_a_gpu_with_its_own_memory_counts_the_hosts_apart(bundle: Bundle) -> None:
    plan = plan_memory(bundle, Board(24 << 30, integrated=False, host=1 << 20), 1024 * MB)
    assert plan.fits_run and not plan.fits_build and plan.build_host > 0


def test_layers_are_counted_by_the_type_they_read() -> None:
    def layer(kind: str, *formats: str) -> dict[str, Any]:
        return {
            "Name": "x",
            "LayerType": kind,
            "Inputs": [{"Format/Datatype": text} for text in formats],
            "Outputs": [],
        }

    text = json.dumps(
        {
            "Layers": [
                layer("gemm", "Int8", "Row major linear FP32"),
                layer("gemm", "Half"),
                layer("PointWise", "FP16"),
                layer("Myelin", "strange"),
            ]
        }
    )
    layers = layer_types(text)
    assert layers == {"fp16": 2, "int8": 1, "other": 1, "products.fp16": 1, "products.int8": 1, "products.other": 1}
    assert int8_share(layers) == pytest.approx(1 / 3)
    for bad in ("{", "{}", '{"Layers": ["names only"]}'):
        with pytest.raises(EngineError, match="inspector"):
            layer_types(bad)


def test_onnx_runtimes_device_session_moves_tensors_through_its_fixed_values(bundle: Bundle) -> None:
    """On the CPU as its device: the copies and bindings are the same, the CUDA graph is not there."""
    graph = bundle.graph("vision")
    session = OrtDeviceGraph(
        make_session(graph, "ort-cuda", ["CPUExecutionProvider"], EngineOptions(threads=1, spin=False)), graph, "cpu"
    )
    reference = load_engine("ort-python", EngineOptions(threads=1, spin=False)).load(graph)
    pixels = np.zeros(session.inputs["pixels"].shape, np.float32)
    outputs = [np.zeros(session.outputs["tokens"].shape, np.float32) for _ in range(2)]
    with pytest.raises(EngineError, match="nothing is bound to pixels, tokens"):
        session.run()
    for made, tokens in zip((session, reference), outputs):
        made.bind_input("pixels", pixels)
        made.bind_output("tokens", tokens)
    for seed in range(2):
        pixels[:] = np.random.default_rng(seed).uniform(-1, 1, pixels.shape)
        session.run()
        reference.run()
        np.testing.assert_array_equal(*outputs)  # type: ignore[arg-type]


def test_exported_graphs_pass_the_lint_for_tensorrt(bundle: Bundle) -> None:
    lint_bundle(bundle)


@pytest.mark.parametrize(
    ("scale", "zero", "words"),
    [
        (1.0, np.int8(0), None),
        (1.0, np.uint8(0), "zero-point is UINT8"),
        (1.0, np.int8(3), "zero-point is not 0"),
        (0.0, np.int8(0), "scale is not positive"),
        (1.0, None, "no zero-point"),
    ],
)
def test_the_lint_names_what_tensorrt_cannot_quantise(
    tmp_path: Path, scale: float, zero: Any, words: str | None
) -> None:
    names = ["x", "scale", *(["zero"] if zero is not None else [])]
    arrays = {"scale": np.float32(scale), **({"zero": zero} if zero is not None else {})}
    nodes = [
        onnx.helper.make_node("QuantizeLinear", names, ["q"], name="quantise"),
        onnx.helper.make_node("DequantizeLinear", ["q", *names[1:]], ["y"], name="back"),
    ]
    assert (
        _found(nodes, arrays) == []
        if words is None
        else any(words in line and "quantise" in line for line in _found(nodes, arrays))
    )


def test_the_lint_names_operators_types_and_shapes_tensorrt_does_not_take() -> None:
    nodes = [
        onnx.helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], name="dynamic"),
        onnx.helper.make_node("Identity", ["x"], ["y"], name="same"),
    ]
    assert _found(nodes, {}) == ["node dynamic: TensorRT has no DynamicQuantizeLinear"]
    assert _found(nodes[1:], {"w": np.zeros(2, np.float64)}) == ["initialiser w has type DOUBLE"]
    assert _found(nodes[1:], {}, size="rows") == ["tensor x has no static shape", "tensor y has no static shape"]


def _found(nodes: list[Any], arrays: dict[str, Any], size: int | str = 4) -> list[str]:
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [size]) for name in ("x", "y")]
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        values[:1],
        values[1:],
        [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])
    return list(find(GraphFile("g", GraphSpec("g.onnx", (), (), ()), Path("g.onnx"), model.SerializeToString(), {})))


def test_a_bundle_is_packed_for_a_device_with_its_memory_plan(
    bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export_engines(["--bundle", str(bundle.path), "--backend", "tensorrt", "--build-on-device"]) == 0
    told = capsys.readouterr().out
    assert "stand in two of them" in told and "export-engines --bundle bundle --backend tensorrt" in told
    with tarfile.open(bundle.path.with_suffix(".tar")) as archive:
        assert set(archive.getnames()) == {f"bundle/{name}" for name in ("manifest.json", *bundle.manifest.files)}
    assert export_engines(["--bundle", str(bundle.path), "--backend", "tensorrt", "--build-on-device"]) == 2


def test_where_there_is_no_gpu_the_flag_that_prepares_here_is_named(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vla_edge.export.tensorrt_bundle.require_gpu", partial(require_gpu, "libnone.so.1"))
    assert export_engines(["--bundle", str(bundle.path), "--backend", "tensorrt"]) == 2
    said = capsys.readouterr().err
    assert "no NVIDIA driver" in said and "install the driver, or add --build-on-device" in said


def test_engine_files_are_built_by_the_command_where_there_is_a_device(
    bundle: Bundle, cuda: EmulatedCuda, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vla_edge.export.tensorrt_bundle.require_gpu", lambda otherwise: 1)
    monkeypatch.setattr("vla_edge.export.tensorrt_bundle.open_cuda", lambda: cuda)
    assert export_engines(["--bundle", str(bundle.path), "--backend", "tensorrt", "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    lines = told["lines"]
    graphs = [f"{name}.engine" for name in bundle.manifest.graphs]
    assert told["built"] and [line.split(":")[0] for line in lines[: len(graphs)]] == graphs
    assert "allowances for system and context are assumed" in " ".join(lines)


def test_without_a_driver_the_commands_end_with_2_and_name_it(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        require_gpu()
    except EngineError:
        pass
    else:
        pytest.skip("this machine has a working driver")
    assert export_engines(["--bundle", str(bundle.path), "--backend", "tensorrt"]) == 2
    assert "NVIDIA driver" in capsys.readouterr().err
    frames = {item.name: np.zeros((item.height, item.width, 3), np.uint8) for item in bundle.manifest.cameras}
    state = np.zeros(bundle.manifest.policy.state_dim, np.float32)
    np.savez(tmp_path / "observation.npz", **frames, **{"observation.state": state, "task": np.array("wait")})  # type: ignore[arg-type]
    words = [
        "infer",
        "--bundle",
        str(bundle.path),
        "--observation",
        str(tmp_path / "observation.npz"),
        "--out",
        str(tmp_path / "actions.npz"),
        "--backend",
        "tensorrt",
    ]
    assert vla_runtime(words) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "NVIDIA driver" in told and "choose backend ort" in told
    assert not (tmp_path / "actions.npz").exists()
