# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime behind the engine border, on the CPU (its GPU providers: ort_device.py).

Graphs are loaded from the bytes that were hashed: the model as bytes, each
external tensor as an array over its mapped file, so no file is read a second
time. (Giving whole files from memory would be shorter but needs 1.24; the last
wheels for Python 3.10 are 1.23.)
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from numpy.typing import NDArray

from vla_edge.bundle import GraphFile
from vla_edge.engines.bindings import Interface, LoadedGraph, check_interface, drop_pages
from vla_edge.engines.dialect import Dialect, Treatment
from vla_edge.engines.engine import Backend, Engine, EngineOptions, HostEngine
from vla_edge.engines.onnx_file import external_arrays
from vla_edge.engines.ort_native import open_native
from vla_edge.errors import CoreError, EngineError
from vla_edge.installation import missing_package

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
    except (CoreError, EngineError) as reason:
        return _python_binding(options, f"Python binding, native sessions not possible: {reason}")


def open_python(options: EngineOptions) -> OrtEngine:
    """ONNX Runtime on the CPU through its Python binding, by explicit choice."""
    return _python_binding(options, "Python binding")


def _python_binding(options: EngineOptions, how: str) -> OrtEngine:
    return OrtEngine("ort", (CPU,), options, f"ONNX Runtime {require_runtime().__version__}, {how}")


CPU_DIALECT = Dialect((Treatment.INT8_DYNAMIC,))
BACKENDS = (
    Backend("ort", open_cpu, standard=True, dialect=CPU_DIALECT, from_memory=False),
    Backend("ort-python", open_python, dialect=CPU_DIALECT),
)


class OrtEngine(HostEngine):
    """Loads graphs into ONNX Runtime sessions of one provider."""

    def __init__(self, name: str, providers: tuple[str, ...], options: EngineOptions, detail: str) -> None:
        self.name = name
        self.detail = detail
        self._providers = providers
        self._options = options

    def load(self, graph: GraphFile) -> OrtGraph:
        """Load `graph`. EngineError when ONNX Runtime refuses it or a provider did not come up."""
        return OrtGraph(make_session(graph, self.name, self._providers, self._options), graph)


@dataclass(frozen=True, slots=True)
class OrtSession:
    """An `onnxruntime.InferenceSession`, and the tensors it reads where they are mapped."""

    session: Any
    weights: Mapping[str, Any]


def make_session(graph: GraphFile, backend: str, providers: Sequence[Any], options: EngineOptions) -> OrtSession:
    """Load `graph` on the first of `providers` (a name, or a name with its options).

    EngineError when ONNX Runtime refuses it, the provider did not come up, or its tensors are not the manifest's.
    """
    onnxruntime = require_runtime()
    settings = _session_options(onnxruntime, options)
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
    check_interface(graph, _interface(session))
    drop_pages(graph)
    return OrtSession(session, weights)


def _session_options(onnxruntime: ModuleType, options: EngineOptions) -> Any:
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


class OrtGraph(LoadedGraph):
    """One graph in a session of the Python binding, on buffers of the host."""

    def __init__(self, made: OrtSession, graph: GraphFile) -> None:
        super().__init__(graph)
        self.refusals = refusals()
        self._made, self._graph = made, graph
        self._binding = made.session.io_binding()

    def _twin(self) -> OrtGraph:
        return OrtGraph(self._made, self._graph)

    def _attach(self, name: str, array: NDArray[Any]) -> None:
        bind = self._binding.bind_input if name in self.inputs else self._binding.bind_output
        bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def _execute(self) -> None:
        self._made.session.run_with_iobinding(self._binding)


def optimized_model(graph: GraphFile) -> bytes:
    """The ONNX model as the CPU provider will run it, after its own optimisation, without large tensors. EngineError:
    onnxruntime is not installed, or refuses the graph."""
    onnxruntime = require_runtime()
    with tempfile.TemporaryDirectory() as folder:
        settings = _session_options(onnxruntime, EngineOptions())
        settings.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        settings.add_session_config_entry("session.optimized_model_external_initializers_file_name", "optimized.bin")
        if graph.weights:
            settings.add_external_initializers_from_files_in_memory(
                list(graph.weights), list(graph.weights.values()), [len(data) for data in graph.weights.values()]
            )
        try:
            onnxruntime.InferenceSession(graph.model, settings, providers=[CPU])
        except refusals() as error:
            raise EngineError(f"{graph.path}: ort refused the graph: {error}; export the bundle again") from None
        return Path(settings.optimized_model_filepath).read_bytes()


def require_runtime() -> ModuleType:
    """The package onnxruntime. EngineError: it is not installed, or too old."""
    try:
        import onnxruntime
    except ImportError:
        raise EngineError(missing_package("onnxruntime")) from None
    version = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])
    if version < OLDEST:
        raise EngineError(f"onnxruntime {onnxruntime.__version__} is older than {OLDEST[0]}.{OLDEST[1]}; upgrade it")
    return onnxruntime  # type: ignore[no-any-return]


def refusals() -> tuple[type[Exception], ...]:
    """The exceptions by which ONNX Runtime says no. RuntimeError: a run that fails with a binding."""
    from onnxruntime.capi import onnxruntime_pybind11_state as binding

    names = (
        *("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NotImplemented", "NoSuchFile"),
        *("RuntimeException", "EPFail", "EngineError"),
    )
    return (RuntimeError, *(getattr(binding, name) for name in names if hasattr(binding, name)))


def _interface(session: Any) -> Interface:
    return {
        (kind, node.name): (tuple(node.shape), _NUMPY_NAMES.get(node.type, node.type))
        for kind, nodes in (("input", session.get_inputs()), ("output", session.get_outputs()))
        for node in nodes
    }


_NUMPY_NAMES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
}
