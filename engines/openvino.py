# SPDX-License-Identifier: Apache-2.0
"""OpenVINO on the CPU, chosen by its name and never in place of another backend.

The model is read from the bytes that were hashed: external tensors are put
into it first, because OpenVINO would open their file a second time. Arithmetic
that the graph leaves in float is done in float32 (OpenVINO would choose
bfloat16 by itself). Activations of layers with 8-bit weights are quantised
inside the kernel, `GROUP` numbers of a row with one scale; not where there is
one row, whose products wait for their weights (benchmarks/LOG.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from numpy.typing import NDArray

from vla_edge.bundle import GraphFile
from vla_edge.engines.bindings import Interface, LoadedGraph, check_interface
from vla_edge.engines.dialect import Dialect, Treatment
from vla_edge.engines.engine import Backend, EngineOptions, HostEngine
from vla_edge.engines.onnx_file import with_inline_tensors
from vla_edge.errors import EngineError
from vla_edge.installation import missing_package

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
    try:
        import openvino
    except ImportError:
        raise EngineError(missing_package("openvino")) from None
    return OpenVinoEngine(openvino, options)


BACKENDS = (
    Backend("openvino", open_openvino, dialect=Dialect((Treatment.INT8_STATIC, Treatment.INT8_WEIGHTS), products=True)),
)


class OpenVinoEngine(HostEngine):
    """Compiles graphs for the CPU; one stream, latency first."""

    name = "openvino"

    def __init__(self, openvino: ModuleType, options: EngineOptions) -> None:
        self.detail = f"OpenVINO {openvino.__version__.split('-')[0]}, CPU"
        self._openvino = openvino
        self._core = openvino.Core()
        self._settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": "f32",
        }
        if options.threads:
            self._settings["INFERENCE_NUM_THREADS"] = options.threads

    def load(self, graph: GraphFile) -> OpenVinoGraph:
        """Compile `graph`. EngineError when OpenVINO refuses it."""
        try:
            model = self._core.read_model(with_inline_tensors(graph.model, graph.weights))
            group = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 0 if _one_row(model) else GROUP}
            compiled = self._core.compile_model(model, "CPU", {**self._settings, **group})
        except RuntimeError as error:
            raise EngineError(f"{graph.path}: openvino refused the graph: {error}; export the bundle again") from None
        check_interface(graph, _interface(compiled, {spec.name for spec in (*graph.spec.inputs, *graph.spec.outputs)}))
        return OpenVinoGraph(self._openvino.Tensor, compiled, graph)


class OpenVinoGraph(LoadedGraph):
    """One compiled graph with one request."""

    def __init__(self, tensor: Any, compiled: Any, graph: GraphFile) -> None:
        super().__init__(graph)
        self._tensor, self._graph = tensor, graph
        self._compiled = compiled
        self._request = compiled.create_infer_request()

    def _twin(self) -> OpenVinoGraph:
        return OpenVinoGraph(self._tensor, self._compiled, self._graph)

    def executed_layers(self) -> Iterator[ExecutedLayer]:
        """What OpenVINO made of the graph, in execution order."""
        for operation in self._compiled.get_runtime_model().get_ordered_ops():
            info = operation.get_rt_info()
            nodes, kind, precision, kernel = (
                str(info[name].value)
                for name in ("originalLayersNames", "layerType", "runtimePrecision", "primitiveType")
            )
            yield ExecutedLayer(tuple(nodes.split(",")), kind, precision, kernel)

    def _attach(self, name: str, array: NDArray[Any]) -> None:
        self._request.set_tensor(name, self._tensor(array, shared_memory=True))

    def _execute(self) -> None:
        self._request.infer()


def _one_row(model: Any) -> bool:
    """Whether every product with a matrix of weights has a single row."""
    maps = [
        node for node in model.get_ops() if node.get_type_name() == "MatMul" and len(node.input(1).get_shape()) == 2
    ]
    return bool(maps) and all(math.prod(node.output(0).get_shape()[:-1]) == 1 for node in maps)


def _interface(compiled: Any, wanted: set[str]) -> Interface:
    """A port of a compiled model may have several names; the one of the manifest counts."""
    return {
        (kind, min(port.get_names() & wanted or port.get_names())): (
            tuple(port.shape),
            port.get_element_type().to_dtype().name,
        )
        for kind, ports in (("input", compiled.inputs), ("output", compiled.outputs))
        for port in ports
    }
