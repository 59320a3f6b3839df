# SPDX-License-Identifier: Apache-2.0
"""The border every backend stands behind: loaded graphs on buffers of the caller, and a flow loop that runs them.

A backend is one file (or folder) beside this one that states what it can do in `BACKENDS`; one that is not there is an
`EngineError` that names what is missing, never another backend in its place. Importing such a file costs nothing: the
package it stands on is imported when the backend is opened.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, Protocol

from numpy.typing import NDArray

from vla_edge.bundle import GraphFile
from vla_edge.command_line import threads
from vla_edge.engines.bindings import LoadedGraph, aligned_zeros
from vla_edge.engines.dialect import Dialect
from vla_edge.engines.flow_loop import FlowGraphs, FlowLoop, PythonLoop
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


class HostEngine:
    """What an engine has whose graphs run on buffers of the host and whose steps Python counts."""

    def allocate(self, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        """A zeroed host buffer on a 64-byte boundary."""
        return aligned_zeros(shape, dtype)

    def flow_loop(self, graphs: FlowGraphs) -> FlowLoop:
        return PythonLoop(graphs)


@dataclass(frozen=True, slots=True)
class Backend:
    """What a backend is and can do, stated in `BACKENDS` of its own file (or folder) beside this one.

    open makes it ready; EngineError names what it lacks here. device: "cpu" or "cuda"; standard: the one taken on its
    device when none is named. dialect: in what precision graphs are prepared for it (None: for it none are).
    from_memory: loads graphs whose tensors lie in no file. builds: runs engine files, built from the graphs before.
    """

    name: str
    open: Callable[[EngineOptions], Engine]
    device: str = "cpu"
    standard: bool = False
    dialect: Dialect | None = None
    from_memory: bool = True
    builds: bool = False


@cache
def backends() -> Mapping[str, Backend]:
    """Every backend by its name."""
    folder = [str(Path(__file__).parent)]
    modules = (import_module(f"{__package__}.{item.name}") for item in iter_modules(folder))
    return {backend.name: backend for module in modules for backend in getattr(module, "BACKENDS", ())}


def backend_of(name: str) -> Backend:
    """EngineError names the backends there are."""
    if name not in backends():
        raise EngineError(f"unknown backend {name!r}; known: {', '.join(backends())}")
    return backends()[name]


def add_engine_arguments(group: argparse._ArgumentGroup) -> None:
    """`--backend` and `--threads`, the same in every command that runs a bundle."""
    group.add_argument("--backend", choices=list(backends()), default="ort", help="what runs the graphs")
    group.add_argument(
        "--threads", type=threads, default=0, help="CPU threads of one graph (default: all physical cores)"
    )


def load_engine(name: str, options: EngineOptions | None = None) -> Engine:
    """The backend `name`. Errors: EngineError names the known backends, or what this one lacks here."""
    return backend_of(name).open(options or EngineOptions())
