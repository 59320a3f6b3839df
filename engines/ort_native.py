"""ONNX Runtime without its Python binding: sessions made and run by the C core.

What it gives over the binding: the flow loop runs without the interpreter, and
graphs that share weights (`prefix` and `state`) share them in memory too,
packed once, read where the verified file is mapped.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_edge.bundle import GraphFile, TensorSpec
from vla_edge.engines.engine import EngineOptions, aligned_zeros, check_buffer
from vla_edge.engines.onnx_file import external_arrays
from vla_edge.errors import EngineError

SELF_TEST_MODEL = (
    b'\x08\x08:u\n\x11\n\x01x\n\x01w\x12\x01h"\x06MatMul\n\x0e\n\x01h\n\x01x\x12\x01y"\x03Add\x12'
    b"\tself_test*\x1b\x08\x02\x08\x02\x10\x01B\x01wJ\x10\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00Z"
    b"\x13\n\x01x\x12\x0e\n\x0c\x08\x01\x12\x08\n\x02\x08\x02\n\x02\x08\x02b\x13\n\x01y\x12\x0e\n\x0c\x08\x01\x12\x08\n\x02\x08\x02\n\x02\x08"
    b"\x02B\x04\n\x00\x10\x11"
)
"""y = x·w + x on [2, 2] floats with w = 0, which the test replaces: the smallest graph that uses the table as the
sessions do. tests/engines/test_engine_native.py rebuilds it with the onnx package."""


def open_native(options: EngineOptions) -> NativeOrtEngine:
    """ONNX Runtime's CPU provider through its C function table. EngineError says why it cannot be used here."""
    core = _core()
    library = _library()
    try:
        runtime = core.OrtRuntime(str(library), options.threads, options.spin)
        _self_test(runtime)
    except RuntimeError as error:
        raise EngineError(f"{library.name}: {error}") from None
    return NativeOrtEngine(runtime)


class NativeOrtEngine:
    """Loads graphs into sessions of the C core; one thread pool for all of them."""

    name = "ort"

    def __init__(self, runtime: Any) -> None:
        self.detail = f"ONNX Runtime {runtime.version}, native"
        self._runtime = runtime

    def allocate(self, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        """A zeroed host buffer on a 64-byte boundary."""
        return aligned_zeros(shape, dtype)

    def session(self, graph: GraphFile) -> NativeSession:
        """Load `graph`; its external tensors are used where they are mapped. EngineError when ONNX Runtime refuses
        it."""
        try:
            session = NativeSession(
                self._runtime.session(graph.model, {}, external_arrays(graph), str(graph.path.parent)), graph
            )
        except RuntimeError as error:
            raise EngineError(
                f"{graph.path}: {self.name} refused the graph: {error}; export the bundle again"
            ) from None
        for data in graph.weights.values():
            _drop_pages(data)
        return session


class NativeSession:
    """One graph bound to its buffers; see `engine.Session`."""

    def __init__(self, session: Any, graph: GraphFile) -> None:
        self.inputs: Mapping[str, TensorSpec] = {spec.name: spec for spec in graph.spec.inputs}
        self.outputs: Mapping[str, TensorSpec] = {spec.name: spec for spec in graph.spec.outputs}
        self._graph = graph
        self._session = session
        self._missing = set(self.inputs) | set(self.outputs)
        self._buffers: dict[str, NDArray[Any]] = {}
        self.binding = session.binding()

    def bind_input(self, name: str, array: NDArray[Any]) -> None:
        """Read input `name` from `array` in every following run."""
        check_buffer(self._graph.name, "input", self.inputs.get(name), name, array)
        self._bound(self.binding.bind_input, name, array)

    def bind_output(self, name: str, array: NDArray[Any]) -> None:
        """Write output `name` into `array` in every following run."""
        check_buffer(self._graph.name, "output", self.outputs.get(name), name, array)
        self._bound(self.binding.bind_output, name, array)

    def run(self) -> None:
        """Execute on the bound buffers. EngineError names what is not bound, or ONNX Runtime's failure."""
        if self._missing:
            raise EngineError(f"graph {self._graph.name}: nothing is bound to {', '.join(sorted(self._missing))}")
        try:
            self.binding.run()
        except RuntimeError as error:
            raise EngineError(f"graph {self._graph.name}: run failed: {error}") from None

    def rebound(self, exchanged: Mapping[str, NDArray[Any]]) -> NativeSession:
        """The same loaded graph with the same buffers but those in `exchanged`: the other half of a ping-pong pair."""
        twin = NativeSession(self._session, self._graph)
        for name, array in {**self._buffers, **exchanged}.items():
            (twin.bind_input if name in twin.inputs else twin.bind_output)(name, array)
        return twin

    def _bound(self, bind: Any, name: str, array: NDArray[Any]) -> None:
        try:
            bind(name, array)
        except RuntimeError as error:
            raise EngineError(f"{self._graph.path}: {name}: {error}; export the bundle again") from None
        self._buffers[name] = array
        self._missing.discard(name)


def _core() -> ModuleType:
    try:
        from vla_edge import _core
    except ImportError:
        raise EngineError(
            "the C core vla_edge._core is not built; install a C compiler and reinstall vla-edge"
        ) from None
    return _core


def _library() -> Path:
    found = find_spec("onnxruntime")
    if found is None or not found.submodule_search_locations:
        raise EngineError("onnxruntime is not installed; pip install 'vla-edge[ort]'")
    libraries = sorted((Path(found.submodule_search_locations[0]) / "capi").glob("libonnxruntime.so*"))
    if not libraries:
        raise EngineError("this onnxruntime wheel carries no libonnxruntime.so")
    return libraries[0]


def _self_test(runtime: Any) -> None:
    """One small graph through every function of the table that is used. RuntimeError when a number differs."""
    weights = np.array([[1, 2], [3, 4]], np.float32)
    binding = runtime.session(SELF_TEST_MODEL, {}, {"w": weights}).binding()
    x, y = np.array([[1, -1], [0.5, 2]], np.float32), np.zeros((2, 2), np.float32)
    binding.bind_input("x", x)
    binding.bind_output("y", y)
    binding.run()
    if not np.array_equal(y, x @ weights + x):
        raise RuntimeError(f"the self-test graph gave {y.tolist()}, expected {(x @ weights + x).tolist()}")


def _drop_pages(data: memoryview) -> None:
    """Give the mapped file's pages back; what a session still reads of them is mapped in again."""
    if isinstance(data.obj, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        data.obj.madvise(mmap.MADV_DONTNEED)
