# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime without its Python binding: sessions made and run by the C core.

What it gives over the binding: the flow loop runs without the interpreter, and
graphs that share weights (`prefix` and `state`) share them in memory too,
packed once, read where the verified file is mapped.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vla_edge.bundle import GraphFile
from vla_edge.core import load_core
from vla_edge.engines.bindings import LoadedGraph, drop_pages
from vla_edge.engines.engine import EngineOptions, HostEngine
from vla_edge.engines.flow_loop import TIE, FlowGraphs, FlowLoop, FlowReport, FlowRequest
from vla_edge.engines.onnx_file import external_arrays
from vla_edge.errors import EngineError
from vla_edge.installation import missing_package

if TYPE_CHECKING:
    from vla_edge._core import OrtBinding, OrtRuntime, OrtSession

SELF_TEST_MODEL = (
    b'\x08\x08:u\n\x11\n\x01x\n\x01w\x12\x01h"\x06MatMul\n\x0e\n\x01h\n\x01x\x12\x01y"\x03Add\x12'
    b"\tself_test*\x1b\x08\x02\x08\x02\x10\x01B\x01wJ\x10\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00Z"
    b"\x13\n\x01x\x12\x0e\n\x0c\x08\x01\x12\x08\n\x02\x08\x02\n\x02\x08\x02b\x13\n\x01y\x12\x0e\n\x0c\x08\x01\x12\x08\n\x02\x08\x02\n\x02\x08"
    b"\x02B\x04\n\x00\x10\x11"
)
"""y = x·w + x on [2, 2] floats with w = 0, which the test replaces: the smallest graph that uses the table as the
sessions do. tests/engines/test_engine_native.py rebuilds it with the onnx package."""


def open_native(options: EngineOptions) -> NativeOrtEngine:
    """ONNX Runtime's CPU provider through its C function table. EngineError or CoreError says why it cannot be used
    here."""
    core = load_core()
    library = _library()
    try:
        runtime = core.OrtRuntime(str(library), options.threads, options.spin)
        _self_test(runtime)
    except RuntimeError as error:
        raise EngineError(f"{library.name}: {error}") from None
    return NativeOrtEngine(runtime)


class NativeOrtEngine(HostEngine):
    """Loads graphs into sessions of the C core; one thread pool for all of them."""

    name = "ort"

    def __init__(self, runtime: OrtRuntime) -> None:
        self.detail = f"ONNX Runtime {runtime.version}, native"
        self._runtime = runtime

    def load(self, graph: GraphFile) -> NativeGraph:
        """Load `graph`; its external tensors are used where they are mapped. EngineError when ONNX Runtime refuses
        it."""
        try:
            session = self._runtime.session(graph.model, external_arrays(graph), str(graph.path.parent))
        except RuntimeError as error:
            raise EngineError(
                f"{graph.path}: {self.name} refused the graph: {error}; export the bundle again"
            ) from None
        loaded = NativeGraph(session, graph)
        drop_pages(graph)
        return loaded

    def flow_loop(self, graphs: FlowGraphs) -> FlowLoop:
        """Prefix, state and steps in C, without the interpreter."""
        return NativeLoop(graphs)


class NativeGraph(LoadedGraph):
    """One graph in a session of the C core."""

    def __init__(self, session: OrtSession, graph: GraphFile) -> None:
        super().__init__(graph)
        self._graph, self._session = graph, session
        self.binding: OrtBinding = session.binding()

    def _twin(self) -> NativeGraph:
        return NativeGraph(self._session, self._graph)

    def _attach(self, name: str, array: NDArray[Any]) -> None:
        self.binding.bind(name, array, name not in self.inputs)

    def _execute(self) -> None:
        self.binding.run()


class NativeLoop:
    """The loop in C (runtime/core/policy/flow.c): prefix, state and steps without the interpreter, two x buffers in
    turn."""

    name = "native"

    def __init__(self, graphs: FlowGraphs) -> None:
        prefix, state, step = graphs.prefix, graphs.state, graphs.step
        assert isinstance(prefix, NativeGraph) and isinstance(state, NativeGraph) and isinstance(step, NativeGraph)
        self._graphs, buffers = graphs, graphs.buffers
        self._x = (buffers["x"], buffers["x_next"])
        self._odd = step.rebound({"x": buffers["x_next"], "x_next": buffers["x"]})
        assert isinstance(self._odd, NativeGraph)
        rows = [(tensor, row) for row, tensor in graphs.state_rows]
        self._flow = load_core().Flow(
            prefix.binding,
            state.binding,
            step.binding,
            self._odd.binding,
            rows,
            graphs.state_place,
            *self._x,
            buffers["time_bias"],
            buffers["dt"],
            *([buffers[TIE], buffers["weights"]] if graphs.ties else []),
        )

    def encode(self, prefix: bool) -> tuple[float, float]:
        try:
            prefix_ns, state_ns = self._flow.encode(prefix)
        except RuntimeError as error:
            raise EngineError(f"graph prefix or state: run failed: {error}") from None
        return prefix_ns / 1e6, state_ns / 1e6

    def denoise(self, request: FlowRequest) -> FlowReport:
        steps = self._graphs.steps_of(request)
        tie = request.inpaint
        noise = np.ascontiguousarray(request.noise, np.float32)
        target, weights = (
            (None, None)
            if tie is None
            else (np.ascontiguousarray(value, np.float32) for value in (tie.target, tie.weights))
        )
        try:
            abandoned, step_ns = self._flow.denoise(
                noise, steps.biases, steps.moments, request.steps, target, weights, request.signal
            )
        except RuntimeError as error:
            raise EngineError(f"graph {self._graphs.step.name}: run failed: {error}") from None
        took = tuple(duration / 1e6 for duration in step_ns)
        return FlowReport(None if abandoned else self._x[len(took) % 2][0].copy(), took)


def _library() -> Path:
    found = find_spec("onnxruntime")
    if found is None or not found.submodule_search_locations:
        raise EngineError(missing_package("onnxruntime"))
    libraries = sorted((Path(found.submodule_search_locations[0]) / "capi").glob("libonnxruntime.so*"))
    if not libraries:
        raise EngineError("this onnxruntime wheel carries no libonnxruntime.so")
    return libraries[0]


def _self_test(runtime: OrtRuntime) -> None:
    """One small graph through every function of the table that is used. RuntimeError when a number differs."""
    weights = np.array([[1, 2], [3, 4]], np.float32)
    binding = runtime.session(SELF_TEST_MODEL, {"w": weights}).binding()
    x, y = np.array([[1, -1], [0.5, 2]], np.float32), np.zeros((2, 2), np.float32)
    binding.bind("x", x, False)
    binding.bind("y", y, True)
    binding.run()
    if not np.array_equal(y, x @ weights + x):
        raise RuntimeError(f"the self-test graph gave {y.tolist()}, expected {(x @ weights + x).tolist()}")
