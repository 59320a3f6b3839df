# SPDX-License-Identifier: Apache-2.0
"""Native ONNX Runtime sessions against the Python binding, and the reader of external tensors against the onnx
package."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from vla_edge.bundle import GraphFile, GraphSpec, TensorSpec
from vla_edge.engines.bindings import LoadedGraph
from vla_edge.engines.engine import EngineOptions, load_engine
from vla_edge.engines.onnx_file import external_array, external_tensors
from vla_edge.engines.ort_native import SELF_TEST_MODEL, open_native
from vla_edge.errors import BundleError, EngineError

ROWS, WIDTH = 3, 64
X, Y = TensorSpec("x", (ROWS, WIDTH), "float32"), TensorSpec("y", (ROWS, WIDTH), "float32")


def graph_file(tmp_path: Path, name: str = "one") -> GraphFile:
    """y = relu(x·a)·b with both weights external in one file."""
    generator = np.random.default_rng(5)
    arrays = {key: generator.standard_normal((WIDTH, WIDTH)).astype(np.float32) for key in ("a", "b")}
    (tmp_path / "weights.bin").write_bytes(arrays["a"].tobytes() + arrays["b"].tobytes())
    initialisers = []
    for index, key in enumerate(arrays):
        tensor = TensorProto(
            name=key, data_type=TensorProto.FLOAT, dims=[WIDTH, WIDTH], data_location=TensorProto.EXTERNAL
        )
        for field, value in (
            ("location", "weights.bin"),
            ("offset", index * WIDTH * WIDTH * 4),
            ("length", WIDTH * WIDTH * 4),
        ):
            tensor.external_data.add(key=field, value=str(value))
        initialisers.append(tensor)
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "b"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [ROWS, WIDTH])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [ROWS, WIDTH])]
    model = helper.make_model(
        helper.make_graph(nodes, name, inputs, outputs, initialisers),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=9,
    )
    weights = {"weights.bin": memoryview((tmp_path / "weights.bin").read_bytes())}
    spec = GraphSpec(f"{name}.onnx", ("weights.bin",), (X,), (Y,))
    return GraphFile(name, spec, tmp_path / f"{name}.onnx", model.SerializeToString(), weights)


def run(engine_name: str, graph: GraphFile, x: np.ndarray) -> np.ndarray:
    session = load_engine(engine_name, EngineOptions(threads=1)).load(graph)
    y = np.zeros((ROWS, WIDTH), np.float32)
    session.bind_input("x", x)
    session.bind_output("y", y)
    session.run()
    return y


def test_the_self_test_model_is_what_its_comment_says() -> None:
    model = onnx.load_model_from_string(SELF_TEST_MODEL)
    assert [(node.op_type, list(node.input)) for node in model.graph.node] == [
        ("MatMul", ["x", "w"]),
        ("Add", ["h", "x"]),
    ]
    np.testing.assert_array_equal(numpy_helper.to_array(model.graph.initializer[0]), np.zeros((2, 2), np.float32))


def test_native_sessions_give_the_same_bits_as_the_python_binding(tmp_path: Path) -> None:
    x = np.random.default_rng(6).standard_normal((ROWS, WIDTH)).astype(np.float32)
    graph = graph_file(tmp_path)
    np.testing.assert_array_equal(run("ort", graph, x), run("ort-python", graph, x))


def test_the_ort_engine_is_native_here_and_says_so() -> None:
    assert load_engine("ort").detail.endswith("native")
    assert load_engine("ort-python").detail.endswith("Python binding")


def test_a_rebound_twin_reads_and_writes_the_exchanged_buffers(tmp_path: Path) -> None:
    session = open_native(EngineOptions(threads=1)).load(graph_file(tmp_path))
    a = np.random.default_rng(7).standard_normal((ROWS, WIDTH)).astype(np.float32)
    b = np.zeros_like(a)
    session.bind_input("x", a)
    session.bind_output("y", b)
    twin = session.rebound({"x": b, "y": a})
    session.run()
    once = b.copy()
    twin.run()
    np.testing.assert_array_equal(b, once)
    np.testing.assert_array_equal(a, run("ort-python", graph_file(tmp_path), once))


def test_bindings_that_do_not_fit_are_named(tmp_path: Path) -> None:
    session = open_native(EngineOptions(threads=1)).load(graph_file(tmp_path))
    with pytest.raises(EngineError, match="no input 'z'"):
        session.bind_input("z", np.zeros((ROWS, WIDTH), np.float32))
    with pytest.raises(EngineError, match=r"x is float32 \[3, 64\], the buffer is float64"):
        session.bind_input("x", np.zeros((ROWS, WIDTH)))
    with pytest.raises(EngineError, match="nothing is bound to x, y"):
        session.run()


def test_a_damaged_model_is_refused_in_one_line(tmp_path: Path) -> None:
    graph = graph_file(tmp_path)
    broken = GraphFile(graph.name, graph.spec, graph.path, graph.model[:-40], graph.weights)
    with pytest.raises((EngineError, BundleError)):
        open_native(EngineOptions(threads=1)).load(broken)


def test_external_tensors_are_read_as_the_onnx_package_reads_them(tmp_path: Path) -> None:
    graph = graph_file(tmp_path)
    tensors = external_tensors(graph.model)
    assert [(tensor.name, tensor.dtype, tensor.shape) for tensor in tensors] == [
        ("a", "float32", (WIDTH, WIDTH)),
        ("b", "float32", (WIDTH, WIDTH)),
    ]
    model = onnx.load_model_from_string(graph.model)
    onnx.external_data_helper.load_external_data_for_model(model, str(tmp_path))
    for tensor, expected in zip(tensors, model.graph.initializer):
        np.testing.assert_array_equal(
            external_array(tensor, graph.weights["weights.bin"]), numpy_helper.to_array(expected)
        )


def test_a_tensor_outside_its_file_is_refused(tmp_path: Path) -> None:
    graph = graph_file(tmp_path)
    with pytest.raises(BundleError, match="initialiser b"):
        external_array(external_tensors(graph.model)[1], graph.weights["weights.bin"][:-4])


@settings(max_examples=300)
@given(data=st.data())
def test_changed_bytes_never_raise_anything_but_a_bundle_error(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model = bytearray(graph_file(tmp_path_factory.mktemp("fuzz")).model)
    for _ in range(data.draw(st.integers(1, 8))):
        model[data.draw(st.integers(0, len(model) - 1))] = data.draw(st.integers(0, 255))
    with suppress(BundleError):
        external_tensors(bytes(model))


def picking(index: int, tmp_path: Path) -> LoadedGraph:
    """y = table[x] with x bound to an index that is not there: a graph whose every run fails with its own message."""
    value = [helper.make_tensor_value_info(name, kind, [1]) for name, kind in (("x", 7), ("y", 1))]
    table = numpy_helper.from_array(np.zeros(2, np.float32), "table")
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "x"], ["y"])], "pick", value[:1], value[1:], [table]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    spec = GraphSpec("pick.onnx", (), (TensorSpec("x", (1,), "int64"),), (TensorSpec("y", (1,), "float32"),))
    loaded = NATIVE.load(GraphFile(f"pick {index}", spec, tmp_path / "pick.onnx", model.SerializeToString(), {}))
    loaded.bind_input("x", np.array([index]))
    loaded.bind_output("y", np.zeros(1, np.float32))
    return loaded


NATIVE = open_native(EngineOptions(threads=1))


def test_graphs_that_fail_in_two_threads_say_each_its_own_reason(tmp_path: Path) -> None:
    """One buffer for all messages would mix them up: they are written without the interpreter's lock."""

    def fail(index: int) -> set[str]:
        graph, said = picking(index, tmp_path), set()
        for _ in range(2000):
            try:
                graph.run()
            except EngineError as error:
                said.add(str(error))
        return said

    with ThreadPoolExecutor(2) as threads:
        for index, said in zip((70, 1234567890), threads.map(fail, (70, 1234567890))):
            assert len(said) == 1 and f"idx={index} " in said.pop()
