"""The border every backend stands behind: sessions bound once to caller-owned buffers.

A backend is one file in this folder and one row in `_BACKENDS`; a backend that
is not there is an `EngineError` that names what is missing, never another
backend in its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vla_edge.bundle import GraphFile, TensorSpec
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


class Session(Protocol):
    """One loaded graph. Buffers are C-contiguous, of the exact shape and dtype, owned by the caller,
    and must outlive the session; EngineError names a binding that does not fit."""

    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]

    def bind_input(self, name: str, array: NDArray[Any]) -> None: ...

    def bind_output(self, name: str, array: NDArray[Any]) -> None: ...

    def run(self) -> None:
        """Execute once on the bound buffers; returns when the outputs are complete."""


class Engine(Protocol):
    """A backend, ready to load graphs. `detail` says in words what really runs (version, provider, how it is
    called)."""

    name: str
    detail: str

    def session(self, graph: GraphFile) -> Session: ...

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


def aligned_zeros(shape: tuple[int, ...], dtype: str, alignment: int = 64) -> NDArray[Any]:
    """A zeroed C-contiguous array whose data pointer is a multiple of `alignment` bytes."""
    kind = np.dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    raw = np.zeros(size + alignment, np.uint8)
    start = -raw.ctypes.data % alignment
    return raw[start : start + size].view(kind).reshape(shape)


def check_buffer(graph: str, kind: str, spec: TensorSpec | None, name: str, array: NDArray[Any]) -> None:
    """EngineError unless `array` is exactly what `spec`, the graph's own tensor, asks for."""
    if spec is None:
        raise EngineError(f"graph {graph} has no {kind} {name!r}")
    if array.shape != spec.shape or array.dtype != np.dtype(spec.dtype):
        raise EngineError(
            f"graph {graph}: {kind} {name} is {spec.dtype} {list(spec.shape)}, the buffer is {array.dtype} "
            f"{list(array.shape)}"
        )
    if not array.flags.c_contiguous:
        raise EngineError(f"graph {graph}: buffer of {kind} {name} is not C-contiguous")
    if kind == "output" and not array.flags.writeable:
        raise EngineError(f"graph {graph}: buffer of output {name} is read-only")
