"""The border every backend stands behind: loaded graphs on buffers of the caller, and a flow loop that runs them.

A backend is one file in this folder and one row in `_BACKENDS`; a backend that
is not there is an `EngineError` that names what is missing, never another
backend in its place.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

from numpy.typing import NDArray

from vla_edge.bundle import GraphFile
from vla_edge.engines.bindings import LoadedGraph
from vla_edge.engines.flow_loop import FlowGraphs, FlowLoop
from vla_edge.errors import EngineError

MOST_THREADS = 1024
"""More than any host has cores: asked for a million, ONNX Runtime starts them, and the host stands still."""


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """threads: CPU threads inside one run (0: all physical cores). spin: workers wait busily between runs
    (fast, but takes a core from the control loop's neighbours). fuse: False computes quantised products as the graph
    writes them, dequantised in float32, which is what another device's INT8 comes to (backends ort and ort-python)."""

    threads: int = 0
    spin: bool = True
    fuse: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.threads <= MOST_THREADS:
            raise EngineError(f"threads is {self.threads}, must be 0 (all physical cores) to {MOST_THREADS}")


class Engine(Protocol):
    """A backend, ready to load graphs. `detail` says in words what really runs (version, provider, how it is
    called)."""

    name: str
    detail: str

    def load(self, graph: GraphFile) -> LoadedGraph:
        """EngineError: the backend refuses the graph, or its tensors are not the manifest's."""

    def flow_loop(self, graphs: FlowGraphs) -> FlowLoop:
        """The loop this backend runs its graphs with."""

    def allocate(self, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        """A zeroed buffer the backend can bind without copying."""


_BACKENDS = {
    "ort": ("vla_edge.engines.ort", "open_cpu"),
    "ort-python": ("vla_edge.engines.ort", "open_python"),
    "ort-cuda": ("vla_edge.engines.ort_device", "open_cuda"),
    "ort-tensorrt": ("vla_edge.engines.ort_device", "open_tensorrt"),
    "tensorrt": ("vla_edge.engines.tensorrt.trt_engine", "open_tensorrt"),
    "tensorrt-pycuda": ("vla_edge.engines.tensorrt.trt_engine", "open_tensorrt_pycuda"),
    "openvino": ("vla_edge.engines.openvino", "open_openvino"),
}


BACKENDS = tuple(_BACKENDS)
"""The names `load_engine` knows."""


def load_engine(name: str, options: EngineOptions | None = None) -> Engine:
    """The backend `name`. Errors: EngineError names the known backends, or what this one lacks here."""
    if name not in _BACKENDS:
        raise EngineError(f"unknown backend {name!r}; known: {', '.join(_BACKENDS)}")
    module, function = _BACKENDS[name]
    engine: Engine = getattr(import_module(module), function)(options or EngineOptions())
    return engine
