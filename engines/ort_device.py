# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime's CUDA and TensorRT providers, each by its own name, with their CUDA graphs switched on: fallbacks.

A captured graph reads and writes fixed device addresses, so every tensor has
one device value for the life of its session; a run copies inputs from and
outputs to the caller's host buffers around it. The provider records the graph
in its first runs and replays it from then on; a graph that would fall back to
the CPU for a node is refused by the provider, not run in part.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_edge.bundle import GraphFile
from vla_edge.engines.bindings import LoadedGraph
from vla_edge.engines.dialect import Dialect
from vla_edge.engines.engine import Backend, EngineOptions, HostEngine
from vla_edge.engines.ort import OrtSession, make_session, refusals, require_runtime
from vla_edge.engines.tensorrt.cuda import require_gpu
from vla_edge.errors import EngineError
from vla_edge.installation import install_command

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


BACKENDS = (
    Backend("ort-cuda", open_cuda, device="cuda", standard=True, dialect=Dialect((), half=True)),
    Backend("ort-tensorrt", open_tensorrt, device="cuda"),
)


def _open(
    name: str, provider: str, providers: list[tuple[str, dict[str, str]]], options: EngineOptions
) -> OrtDeviceEngine:
    onnxruntime = require_runtime()
    have = onnxruntime.get_available_providers()
    if provider not in have:
        raise EngineError(
            f"backend {name} needs {provider}, this onnxruntime {onnxruntime.__version__} has only "
            f"{', '.join(have)}; install it with: {install_command('gpu')}; or choose backend ort"
        )
    require_gpu()
    return OrtDeviceEngine(name, providers, options)


class OrtDeviceEngine(HostEngine):
    """Loads graphs into sessions of one GPU provider."""

    def __init__(self, name: str, providers: list[tuple[str, dict[str, str]]], options: EngineOptions) -> None:
        self.name = name
        self.detail = (
            f"ONNX Runtime {require_runtime().__version__}, {providers[0][0]} with CUDA graphs; a fallback: every step "
            "uploads all keys and values"
        )
        self._providers = providers
        self._options = options

    def load(self, graph: GraphFile) -> OrtDeviceGraph:
        """Load `graph`. EngineError when the provider refuses it or did not come up."""
        return OrtDeviceGraph(make_session(graph, self.name, self._providers, self._options), graph, "cuda")


class OrtDeviceGraph(LoadedGraph):
    """One graph with its tensors on `device`; a run copies inputs in and outputs out."""

    def __init__(self, made: OrtSession, graph: GraphFile, device: str) -> None:
        super().__init__(graph)
        self.refusals = refusals()
        self._made = made
        self._binding = made.session.io_binding()
        self._values: dict[str, Any] = {}
        for specs, bind in (
            (self.inputs, self._binding.bind_ortvalue_input),
            (self.outputs, self._binding.bind_ortvalue_output),
        ):
            for name, spec in specs.items():
                self._values[name] = require_runtime().OrtValue.ortvalue_from_numpy(
                    np.zeros(spec.shape, spec.dtype), device, 0
                )
                bind(name, self._values[name])

    def _attach(self, name: str, array: NDArray[Any]) -> None:
        """Nothing to tell the provider: its tensors keep their own place on the device."""

    def _execute(self) -> None:
        for name in self.inputs:
            self._values[name].update_inplace(self.buffers[name])
        self._made.session.run_with_iobinding(self._binding)
        for name in self.outputs:
            np.copyto(self.buffers[name], self._values[name].numpy())
