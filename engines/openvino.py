"""OpenVINO on the CPU, chosen by its name and never in place of another backend.

The model is read from the bytes that were hashed: external tensors are put
into it first, because OpenVINO would open their file a second time. Arithmetic
that the graph leaves in float is done in float32 (OpenVINO would choose
bfloat16 by itself). Activations of layers with 8-bit weights are quantised
inside the kernel, `GROUP` numbers of a row with one scale.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from vla_edge.bundle import GraphFile, TensorSpec
from vla_edge.engines.engine import EngineOptions, aligned_zeros, check_buffer
from vla_edge.engines.onnx_file import with_inline_tensors
from vla_edge.errors import EngineError

try:
    import openvino
except ImportError:
    openvino = None

GROUP = 64


@dataclass(frozen=True, slots=True)
class ExecutedLayer:
    """One layer of a compiled graph: the ONNX nodes it stands for, its kind, precision and kernel as OpenVINO names
    them."""

    nodes: tuple[str, ...]
    kind: str
    precision: str
    kernel: str


def open_openvino(options: EngineOptions) -> OpenVinoEngine:
    """EngineError when openvino is not installed."""
    if openvino is None:
        raise EngineError("openvino is not installed; pip install 'vla-edge[openvino]'")
    return OpenVinoEngine(options)


class OpenVinoEngine:
    """Compiles graphs for the CPU; one stream, latency first."""

    name = "openvino"

    def __init__(self, options: EngineOptions) -> None:
        self.detail = f"OpenVINO {openvino.__version__.split('-')[0]}, CPU"
        self._core = openvino.Core()
        self._settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": GROUP,
        }
        if options.threads:
            self._settings["INFERENCE_NUM_THREADS"] = options.threads

    def allocate(self, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        """A zeroed host buffer on a 64-byte boundary."""
        return aligned_zeros(shape, dtype)

    def session(self, graph: GraphFile) -> OpenVinoSession:
        """Compile `graph`. EngineError when OpenVINO refuses it."""
        try:
            compiled = self._core.compile_model(
                self._core.read_model(with_inline_tensors(graph.model, graph.weights)), "CPU", self._settings
            )
        except RuntimeError as error:
            raise EngineError(f"{graph.path}: openvino refused the graph: {error}; export the bundle again") from None
        return OpenVinoSession(compiled, graph)


class OpenVinoSession:
    """One compiled graph bound to its buffers; see `engine.Session`."""

    def __init__(self, compiled: Any, graph: GraphFile) -> None:
        self.inputs: Mapping[str, TensorSpec] = {spec.name: spec for spec in graph.spec.inputs}
        self.outputs: Mapping[str, TensorSpec] = {spec.name: spec for spec in graph.spec.outputs}
        self._graph = graph.name
        self._compiled = compiled
        _check_interface(graph, compiled)
        self._request = compiled.create_infer_request()
        self._buffers: dict[str, NDArray[Any]] = {}
        self._missing = set(self.inputs) | set(self.outputs)

    def bind_input(self, name: str, array: NDArray[Any]) -> None:
        """Read input `name` from `array` in every following run."""
        check_buffer(self._graph, "input", self.inputs.get(name), name, array)
        self._bind(name, array)

    def bind_output(self, name: str, array: NDArray[Any]) -> None:
        """Write output `name` into `array` in every following run."""
        check_buffer(self._graph, "output", self.outputs.get(name), name, array)
        self._bind(name, array)

    def run(self) -> None:
        """Execute on the bound buffers. EngineError names what is not bound, or OpenVINO's failure."""
        if self._missing:
            raise EngineError(f"graph {self._graph}: nothing is bound to {', '.join(sorted(self._missing))}")
        try:
            self._request.infer()
        except RuntimeError as error:
            raise EngineError(f"graph {self._graph}: run failed: {error}") from None

    def executed_layers(self) -> Iterator[ExecutedLayer]:
        """What OpenVINO made of the graph, in execution order."""
        for operation in self._compiled.get_runtime_model().get_ordered_ops():
            info = operation.get_rt_info()
            nodes, kind, precision, kernel = (
                str(info[name].value)
                for name in ("originalLayersNames", "layerType", "runtimePrecision", "primitiveType")
            )
            yield ExecutedLayer(tuple(nodes.split(",")), kind, precision, kernel)

    def _bind(self, name: str, array: NDArray[Any]) -> None:
        self._request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
        self._buffers[name] = array
        self._missing.discard(name)


def _check_interface(graph: GraphFile, compiled: Any) -> None:
    """The manifest's tensors must be the graph's own."""
    for kind, specs, ports in (
        ("input", graph.spec.inputs, compiled.inputs),
        ("output", graph.spec.outputs, compiled.outputs),
    ):
        found = {name: tuple(port.shape) for port in ports for name in port.get_names()}
        for spec in specs:
            if found.get(spec.name) != spec.shape:
                raise EngineError(
                    f"{graph.path}: {kind} {spec.name} is {found.get(spec.name, 'missing')} in the graph and "
                    f"{spec.shape} in the manifest; export the bundle again"
                )
