"""ONNX Runtime's CUDA and TensorRT providers, each by its own name, with their CUDA graphs switched on.

A captured graph reads and writes fixed device addresses, so every tensor has
one device value for the life of its session; a run copies inputs from and
outputs to the caller's host buffers around it. The provider records the graph
in its first runs and replays it from then on; a graph that would fall back to
the CPU for a node is refused by the provider, not run in part.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_edge.bundle import GraphFile, TensorSpec
from vla_edge.engines.engine import EngineOptions, aligned_zeros, check_buffer
from vla_edge.engines.ort import LoadedGraph, load_graph, onnxruntime, refusals, require_runtime
from vla_edge.engines.tensorrt.cuda import require_gpu
from vla_edge.errors import EngineError

CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
CUDA_OPTIONS = {"enable_cuda_graph": "1", "use_tf32": "0"}
TENSORRT_OPTIONS = {"trt_cuda_graph_enable": "1", "trt_fp16_enable": "0", "trt_int8_enable": "0"}
"""Precision comes from the graph; the provider's own switches stay off."""


def open_cuda(options: EngineOptions) -> OrtDeviceEngine:
    """EngineError: this build of onnxruntime has no CUDA provider, or there is no driver."""
    return _open("ort-cuda", CUDA, [(CUDA, CUDA_OPTIONS)], options)


def open_tensorrt(options: EngineOptions) -> OrtDeviceEngine:
    """EngineError: this build of onnxruntime has no TensorRT provider, or there is no driver. Plans are built when a
    graph is loaded, which takes minutes each time; backend tensorrt builds them once."""
    return _open("ort-tensorrt", TENSORRT, [(TENSORRT, TENSORRT_OPTIONS), (CUDA, {"use_tf32": "0"})], options)


def _open(
    name: str, provider: str, providers: list[tuple[str, dict[str, str]]], options: EngineOptions
) -> OrtDeviceEngine:
    require_runtime()
    have = onnxruntime.get_available_providers()
    if provider not in have:
        raise EngineError(
            f"backend {name} needs {provider}, this onnxruntime {onnxruntime.__version__} has only "
            f"{', '.join(have)}; install onnxruntime-gpu, or choose backend ort"
        )
    require_gpu()
    return OrtDeviceEngine(name, providers, options)


class OrtDeviceEngine:
    """Loads graphs into sessions of one GPU provider."""

    def __init__(self, name: str, providers: list[tuple[str, dict[str, str]]], options: EngineOptions) -> None:
        self.name = name
        self.detail = f"ONNX Runtime {onnxruntime.__version__}, {providers[0][0]} with CUDA graphs"
        self._providers = providers
        self._options = options

    def allocate(self, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        """A zeroed host buffer on a 64-byte boundary."""
        return aligned_zeros(shape, dtype)

    def session(self, graph: GraphFile) -> OrtDeviceSession:
        """Load `graph`. EngineError when the provider refuses it or did not come up."""
        return OrtDeviceSession(load_graph(graph, self.name, self._providers, self._options), graph, "cuda")


class OrtDeviceSession:
    """One graph with its tensors on `device`; see `engine.Session`."""

    def __init__(self, loaded: LoadedGraph, graph: GraphFile, device: str) -> None:
        self.inputs: Mapping[str, TensorSpec] = {spec.name: spec for spec in graph.spec.inputs}
        self.outputs: Mapping[str, TensorSpec] = {spec.name: spec for spec in graph.spec.outputs}
        self._graph = graph.name
        self._loaded = loaded
        self._binding = loaded.session.io_binding()
        self._values: dict[str, Any] = {}
        for specs, bind in (
            (self.inputs, self._binding.bind_ortvalue_input),
            (self.outputs, self._binding.bind_ortvalue_output),
        ):
            for name, spec in specs.items():
                self._values[name] = onnxruntime.OrtValue.ortvalue_from_numpy(
                    np.zeros(spec.shape, spec.dtype), device, 0
                )
                bind(name, self._values[name])
        self._buffers: dict[str, NDArray[Any]] = {}

    def bind_input(self, name: str, array: NDArray[Any]) -> None:
        """Read input `name` from `array` in every following run."""
        check_buffer(self._graph, "input", self.inputs.get(name), name, array)
        self._buffers[name] = array

    def bind_output(self, name: str, array: NDArray[Any]) -> None:
        """Write output `name` into `array` in every following run."""
        check_buffer(self._graph, "output", self.outputs.get(name), name, array)
        self._buffers[name] = array

    def run(self) -> None:
        """Execute on the bound buffers. EngineError names what is not bound, or the provider's failure."""
        missing = sorted((set(self.inputs) | set(self.outputs)) - set(self._buffers))
        if missing:
            raise EngineError(f"graph {self._graph}: nothing is bound to {', '.join(missing)}")
        try:
            for name in self.inputs:
                self._values[name].update_inplace(self._buffers[name])
            self._loaded.session.run_with_iobinding(self._binding)
            for name in self.outputs:
                np.copyto(self._buffers[name], self._values[name].numpy())
        except refusals() as error:
            raise EngineError(f"graph {self._graph}: run failed: {error}") from None
