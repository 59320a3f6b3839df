# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime behind the engine border: bound buffers, bytes that were hashed, refusals in one line."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from vla_edge.bundle import GraphFile, GraphSpec, TensorSpec
from vla_edge.engines.engine import Engine, EngineOptions, load_engine
from vla_edge.errors import EngineError, VlaEdgeError
from vla_edge.export.graph import Graph
from vla_edge.export.weights import WeightFile

PYTHON = load_engine("ort-python", EngineOptions(threads=1, spin=False))
SQUARE = np.arange(6400, dtype=np.float32).reshape(80, 80) / 6400


@pytest.fixture(params=("ort", "ort-python"))
def engine(request: pytest.FixtureRequest) -> Engine:
    """The default (the C core's sessions where it is built) and the Python binding."""
    return load_engine(request.param, EngineOptions(threads=1, spin=False))


@pytest.fixture
def graph_file(tmp_path: Path) -> GraphFile:
    """y = x · W + z, W outside the graph."""
    (tmp_path / "graphs").mkdir()
    file = tmp_path / "graphs" / "weights.bin"
    with WeightFile(file) as weights:
        graph = Graph("tiny", weights)
        x, z = graph.input("x", (2, 80)), graph.input("z", (2, 80))
        product = graph.op("MatMul", x, graph.weight(SQUARE, "square"), name="product")
        graph.output(graph.op("Add", product, z, name="sum"), "y", (2, 80))
        model = graph.model().SerializeToString()
    spec = GraphSpec("graphs/tiny.onnx", ("graphs/weights.bin",), tuple(graph.inputs), tuple(graph.outputs))
    return GraphFile("tiny", spec, file.parent / "tiny.onnx", model, {"weights.bin": memoryview(file.read_bytes())})


def test_a_session_reads_and_writes_the_callers_buffers(engine: Engine, graph_file: GraphFile) -> None:
    session = engine.load(graph_file)
    x, z, y = (engine.allocate((2, 80), "float32") for _ in range(3))
    session.bind_input("x", x)
    session.bind_input("z", z)
    session.bind_output("y", y)
    generator = np.random.default_rng(0)
    for _ in range(3):
        x[:], z[:] = generator.standard_normal((2, 2, 80), np.float32)
        session.run()
        # Two float32 summation orders of 80 terms.
        np.testing.assert_allclose(y, x @ SQUARE + z, rtol=1e-5, atol=1e-5)


def test_the_weights_are_those_in_memory_whatever_became_of_the_file(engine: Engine, graph_file: GraphFile) -> None:
    file = graph_file.path.parent / "weights.bin"
    file.write_bytes(bytes(file.stat().st_size))
    session = engine.load(graph_file)
    x, z, y = (engine.allocate((2, 80), "float32") for _ in range(3))
    session.bind_input("x", x)
    session.bind_input("z", z)
    session.bind_output("y", y)
    x.fill(1.0)
    session.run()
    np.testing.assert_allclose(y, x @ SQUARE, rtol=1e-5)


def test_a_buffer_may_be_bound_again_and_a_view_is_enough(engine: Engine, graph_file: GraphFile) -> None:
    session = engine.load(graph_file)
    x, z = engine.allocate((2, 80), "float32"), engine.allocate((2, 80), "float32")
    both = engine.allocate((2, 2, 80), "float32")
    session.bind_input("x", x)
    session.bind_input("z", z)
    for index, value in enumerate((1.0, 2.0)):
        session.bind_output("y", both[index])
        z.fill(value)
        session.run()
    assert both[0].min() == both[0].max() == 1.0
    assert both[1].min() == both[1].max() == 2.0


def test_one_buffer_may_be_output_of_a_session_and_input_of_another(engine: Engine, graph_file: GraphFile) -> None:
    first, second = engine.load(graph_file), engine.load(graph_file)
    x, between, z, y = (engine.allocate((2, 80), "float32") for _ in range(4))
    for session, source, target in ((first, x, between), (second, between, y)):
        session.bind_input("x", source)
        session.bind_input("z", z)
        session.bind_output("y", target)
    x.fill(0.5)
    first.run()
    second.run()
    np.testing.assert_allclose(y, x @ SQUARE @ SQUARE, rtol=1e-5)


def test_buffers_are_zeroed_and_aligned(engine: Engine) -> None:
    for shape in ((1,), (3, 5), (7, 11, 13)):
        buffer = engine.allocate(shape, "float32")
        assert buffer.shape == shape and not buffer.any() and buffer.ctypes.data % 64 == 0 and buffer.flags.c_contiguous


def test_what_is_not_bound_is_named_before_anything_runs(engine: Engine, graph_file: GraphFile) -> None:
    session = engine.load(graph_file)
    session.bind_input("z", engine.allocate((2, 80), "float32"))
    with pytest.raises(EngineError, match="nothing is bound to x, y"):
        session.run()


@pytest.mark.parametrize(
    ("buffer", "words"),
    [
        (np.zeros((2, 81), np.float32), r"\[2, 80\].*\[2, 81\]"),
        (np.zeros((2, 80), np.float64), "float32.*float64"),
        (np.zeros((80, 2), np.float32).T, "contiguous"),
    ],
)
def test_a_buffer_that_does_not_fit_is_refused_with_both_shapes(
    engine: Engine, graph_file: GraphFile, buffer: np.ndarray, words: str
) -> None:
    session = engine.load(graph_file)
    with pytest.raises(EngineError, match=words):
        session.bind_input("x", buffer)
    with pytest.raises(EngineError, match=words):
        session.bind_output("y", buffer)


def test_a_read_only_output_and_an_unknown_name_are_refused(engine: Engine, graph_file: GraphFile) -> None:
    session, buffer = engine.load(graph_file), np.zeros((2, 80), np.float32)
    buffer.flags.writeable = False
    with pytest.raises(EngineError, match="read-only"):
        session.bind_output("y", buffer)
    with pytest.raises(EngineError, match="no input 'w'"):
        session.bind_input("w", buffer)


def test_a_manifest_that_tells_other_tensors_than_the_graph_is_refused(graph_file: GraphFile) -> None:
    for spec in (
        replace(graph_file.spec, inputs=(TensorSpec("x", (2, 81), "float32"), graph_file.spec.inputs[1])),
        replace(graph_file.spec, inputs=graph_file.spec.inputs[:1]),
        replace(graph_file.spec, outputs=(TensorSpec("y", (2, 80), "float16"),)),
    ):
        with pytest.raises(EngineError, match="in the graph and .* in the manifest"):
            PYTHON.load(replace(graph_file, spec=spec))


def test_bytes_that_are_no_graph_are_refused_in_one_line(
    engine: Engine, graph_file: GraphFile, capfd: pytest.CaptureFixture[str]
) -> None:
    for model in (b"", b"no graph at all", graph_file.model[:-40]):
        with pytest.raises(VlaEdgeError):
            engine.load(replace(graph_file, model=model))
    with pytest.raises(VlaEdgeError):
        engine.load(replace(graph_file, weights={"weights.bin": graph_file.weights["weights.bin"][:100]}))
    assert not capfd.readouterr().err


def test_an_operator_nobody_knows_is_refused_by_name(engine: Engine, graph_file: GraphFile) -> None:
    model = onnx.load_from_string(graph_file.model)
    model.graph.node[0].op_type = "Unheard"
    with pytest.raises(EngineError, match="Unheard"):
        engine.load(replace(graph_file, model=model.SerializeToString()))


def test_a_backend_that_is_not_there_says_what_is_missing() -> None:
    with pytest.raises(EngineError, match="unknown backend 'orт'.*ort"):
        load_engine("orт")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(EngineError, match=r"CUDAExecutionProvider.*pip install .*\[gpu\]"):
            load_engine("ort-cuda")


def test_a_machine_without_onnxruntime_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EngineError, match=r"pip install .*\[ort\]"):
        load_engine("ort")


@pytest.mark.parametrize("threads", [-1, 1_000_000])
def test_a_number_of_threads_that_no_host_has_is_refused(threads: int) -> None:
    with pytest.raises(EngineError, match=f"threads is {threads}, must be 0 .* to 1024"):
        EngineOptions(threads=threads)


def test_listing_the_backends_imports_none_of_their_packages() -> None:
    code = (
        "import sys; from vla_edge.engines.engine import backends; names = list(backends()); "
        "print(*names, *({'onnxruntime', 'openvino', 'tensorrt', 'cuda', 'onnx', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) >= {"ort", "ort-python", "ort-cuda", "openvino"}
    assert not {"onnxruntime", "onnx", "torch", "cuda"} & set(done.stdout.split())
    assert done.stdout.split().count("openvino") == done.stdout.split().count("tensorrt") == 1
