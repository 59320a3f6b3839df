"""ONNX Runtime behind the engine border, on the CPU (its GPU providers: ort_device.py).

Graphs are loaded from the bytes that were hashed: the model as bytes, each
external tensor as an array over its mapped file, so no file is read a second
time. (Giving whole files from memory would be shorter but needs 1.24; the last
wheels for Python 3.10 are 1.23.)
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from vla_edge.bundle import GraphFile, TensorSpec
from vla_edge.engines.engine import Engine, EngineOptions, aligned_zeros, check_buffer
from vla_edge.engines.onnx_file import external_arrays
from vla_edge.engines.ort_native import open_native
from vla_edge.errors import EngineError

try:
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as binding
except ImportError:
    onnxruntime = None

CPU = "CPUExecutionProvider"
OLDEST = (1, 20)
"""Every call used here is in its Python binding."""


def open_cpu(options: EngineOptions) -> Engine:
    """ONNX Runtime on the CPU: native sessions, or the Python binding where they cannot be had.

    The same kernels run either way; `detail` says which it is and why. EngineError when onnxruntime is missing or
    too old.
    """
    require_runtime()
    if not options.fuse:
        return _python_binding(options, "Python binding, quantised products as written")
    try:
        return open_native(options)
    except EngineError as reason:
        return _python_binding(options, f"Python binding, native sessions not possible: {reason}")


def open_python(options: EngineOptions) -> OrtEngine:
    """ONNX Runtime on the CPU through its Python binding, by explicit choice."""
    require_runtime()
    return _python_binding(options, "Python binding")


def _python_binding(options: EngineOptions, how: str) -> OrtEngine:
    return OrtEngine("ort", (CPU,), options, f"ONNX Runtime {onnxruntime.__version__}, {how}")


class OrtEngine:
    """Loads graphs into ONNX Runtime sessions of one provider."""

    def __init__(self, name: str, providers: tuple[str, ...], options: EngineOptions, detail: str) -> None:
        self.name = name
        self.detail = detail
        self._providers = providers
        self._options = options

    def allocate(self, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        """A zeroed host buffer on a 64-byte boundary."""
        return aligned_zeros(shape, dtype)

    def session(self, graph: GraphFile) -> OrtSession:
        """Load `graph`. EngineError when ONNX Runtime refuses it or a provider did not come up."""
        return OrtSession(load_graph(graph, self.name, self._providers, self._options), graph)


@dataclass(frozen=True, slots=True)
class LoadedGraph:
    """An ONNX Runtime session, and the tensors it reads where they are mapped."""

    session: Any
    weights: Mapping[str, Any]


def load_graph(graph: GraphFile, backend: str, providers: Sequence[Any], options: EngineOptions) -> LoadedGraph:
    """Load `graph` on the first of `providers` (a name, or a name with its options).

    EngineError when ONNX Runtime refuses it, the provider did not come up, or its tensors are not the manifest's.
    """
    settings = session_options(options)
    weights = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in external_arrays(graph).items()}
    if weights:
        settings.add_external_initializers(list(weights), list(weights.values()))
    try:
        session = onnxruntime.InferenceSession(graph.model, settings, providers=list(providers))
    except refusals() as error:
        raise EngineError(f"{graph.path}: {backend} refused the graph: {error}; export the bundle again") from None
    wanted = providers[0] if isinstance(providers[0], str) else providers[0][0]
    if session.get_providers()[0] != wanted:
        raise EngineError(
            f"{backend}: {wanted} did not start on this machine (got {', '.join(session.get_providers())}); check "
            "its driver and libraries, or choose backend ort"
        )
    _check_interface(graph, session)
    for data in graph.weights.values():
        _drop_pages(data)
    return LoadedGraph(session, weights)


def session_options(options: EngineOptions) -> Any:
    """ONNX Runtime's settings for one stream of small runs."""
    made = onnxruntime.SessionOptions()
    made.intra_op_num_threads = options.threads
    made.inter_op_num_threads = 1
    made.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    made.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Its own log would repeat on stderr what the raised error says.
    made.log_severity_level = 4
    made.add_session_config_entry("session.intra_op.allow_spinning", "1" if options.spin else "0")
    made.add_session_config_entry("session.disable_quant_qdq", "0" if options.fuse else "1")
    return made


class OrtSession:
    """One graph bound to its buffers; see `engine.Session`."""

    def __init__(self, loaded: LoadedGraph, graph: GraphFile) -> None:
        self.inputs: Mapping[str, TensorSpec] = {spec.name: spec for spec in graph.spec.inputs}
        self.outputs: Mapping[str, TensorSpec] = {spec.name: spec for spec in graph.spec.outputs}
        self._graph = graph.name
        self._loaded = loaded
        self._binding = loaded.session.io_binding()
        self._buffers: dict[str, NDArray[Any]] = {}
        self._missing = set(self.inputs) | set(self.outputs)

    def bind_input(self, name: str, array: NDArray[Any]) -> None:
        """Read input `name` from `array` in every following run."""
        check_buffer(self._graph, "input", self.inputs.get(name), name, array)
        self._binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        self._remember(name, array)

    def bind_output(self, name: str, array: NDArray[Any]) -> None:
        """Write output `name` into `array` in every following run."""
        check_buffer(self._graph, "output", self.outputs.get(name), name, array)
        self._binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        self._remember(name, array)

    def run(self) -> None:
        """Execute on the bound buffers. EngineError names what is not bound, or ONNX Runtime's failure."""
        if self._missing:
            raise EngineError(f"graph {self._graph}: nothing is bound to {', '.join(sorted(self._missing))}")
        try:
            self._loaded.session.run_with_iobinding(self._binding)
        except refusals() as error:
            raise EngineError(f"graph {self._graph}: run failed: {error}") from None

    def _remember(self, name: str, array: NDArray[Any]) -> None:
        self._buffers[name] = array
        self._missing.discard(name)


def require_runtime() -> None:
    if onnxruntime is None:
        raise EngineError("onnxruntime is not installed; pip install 'vla-edge[ort]'")
    version = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])
    if version < OLDEST:
        raise EngineError(f"onnxruntime {onnxruntime.__version__} is older than {OLDEST[0]}.{OLDEST[1]}; upgrade it")


def refusals() -> tuple[type[Exception], ...]:
    """The exceptions by which ONNX Runtime says no. RuntimeError: a run that fails with a binding."""
    names = (
        "Fail",
        "InvalidArgument",
        "InvalidGraph",
        "InvalidProtobuf",
        "NotImplemented",
        "NoSuchFile",
        "RuntimeException",
        "EPFail",
        "EngineError",
    )
    return (RuntimeError, *(getattr(binding, name) for name in names if hasattr(binding, name)))


def _check_interface(graph: GraphFile, session: Any) -> None:
    """The manifest's tensors must be the graph's own."""
    for kind, specs, nodes in (
        ("input", graph.spec.inputs, session.get_inputs()),
        ("output", graph.spec.outputs, session.get_outputs()),
    ):
        said = {spec.name: (spec.shape, spec.dtype) for spec in specs}
        found = {node.name: (tuple(node.shape), _NUMPY_NAMES.get(node.type, node.type)) for node in nodes}
        for name in sorted(said.keys() | found.keys()):
            if said.get(name) != found.get(name):
                raise EngineError(
                    f"{graph.path}: {kind} {name} is {found.get(name, 'missing')} in the graph and "
                    f"{said.get(name, 'missing')} in the manifest; export the bundle again"
                )


_NUMPY_NAMES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
}


def _drop_pages(data: memoryview) -> None:
    """Give the mapped file's pages back: the session holds its own copy of the weights by now."""
    if isinstance(data.obj, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        data.obj.madvise(mmap.MADV_DONTNEED)
