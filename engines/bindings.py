# SPDX-License-Identifier: Apache-2.0
"""Buffers of the caller bound by name to a loaded graph, and a graph's own tensors compared with the manifest's."""

from __future__ import annotations

import mmap
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_edge.bundle import GraphFile, TensorSpec
from vla_edge.errors import EngineError

Interface = Mapping[tuple[str, str], tuple[tuple[int, ...], str]]
"""(shape, numpy dtype name) by ("input" or "output", tensor name)."""


class LoadedGraph(ABC):
    """One graph that an engine has loaded, bound once to buffers of the caller.

    Buffers are C-contiguous, of the exact shape and dtype, and kept alive from here; EngineError names one that does
    not fit. A backend says how a buffer is given to it (`_attach`) and how one run goes (`_execute`); `refusals` are
    the exceptions by which it says no.
    """

    refusals: tuple[type[Exception], ...] = (RuntimeError,)

    def __init__(self, graph: GraphFile) -> None:
        self.name = graph.name
        self.inputs: Mapping[str, TensorSpec] = {spec.name: spec for spec in graph.spec.inputs}
        self.outputs: Mapping[str, TensorSpec] = {spec.name: spec for spec in graph.spec.outputs}
        self.buffers: dict[str, NDArray[Any]] = {}
        self._missing = {*self.inputs, *self.outputs}

    def bind_input(self, name: str, array: NDArray[Any]) -> None:
        """Read input `name` from `array` in every following run."""
        check_buffer(self.name, "input", self.inputs.get(name), name, array)
        self._bind(name, array)

    def bind_output(self, name: str, array: NDArray[Any]) -> None:
        """Write output `name` into `array` in every following run."""
        check_buffer(self.name, "output", self.outputs.get(name), name, array)
        self._bind(name, array)

    def run(self) -> None:
        """Execute once; the outputs are complete on return. EngineError names what is not bound, or what failed."""
        if self._missing:
            raise EngineError(f"graph {self.name}: nothing is bound to {', '.join(sorted(self._missing))}")
        try:
            self._execute()
        except self.refusals as error:
            raise EngineError(f"graph {self.name}: run failed: {error}") from None

    def rebound(self, exchanged: Mapping[str, NDArray[Any]]) -> LoadedGraph:
        """The same loaded graph on the same buffers but those in `exchanged`, to be run beside this one or in turn with
        it. EngineError: the backend has no such thing."""
        twin = self._twin()
        for name, array in {**self.buffers, **exchanged}.items():
            (twin.bind_input if name in twin.inputs else twin.bind_output)(name, array)
        return twin

    def _twin(self) -> LoadedGraph:
        raise EngineError(f"graph {self.name}: this backend runs a graph on one set of buffers only")

    def fixed(self, buffers: Mapping[str, NDArray[Any]]) -> Callable[[], None]:
        """A run of this graph on these buffers, all of its inputs and outputs, which stay where they are."""

        def run() -> None:
            for name, array in buffers.items():
                (self.bind_input if name in self.inputs else self.bind_output)(name, array)
            self.run()

        return run

    def _bind(self, name: str, array: NDArray[Any]) -> None:
        try:
            self._attach(name, array)
        except self.refusals as error:
            raise EngineError(f"graph {self.name}: {name}: {error}; export the bundle again") from None
        self.buffers[name] = array
        self._missing.discard(name)

    @abstractmethod
    def _attach(self, name: str, array: NDArray[Any]) -> None: ...

    @abstractmethod
    def _execute(self) -> None: ...


def aligned_zeros(shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    """A zeroed C-contiguous array whose data pointer is a multiple of 64 bytes."""
    kind = np.dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    raw = np.zeros(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
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


def check_interface(graph: GraphFile, found: Interface, advice: str = "export the bundle again") -> None:
    """EngineError unless the tensors `found` in a loaded graph are exactly those of the manifest."""
    said: dict[tuple[str, str], tuple[tuple[int, ...], str]] = {
        (kind, spec.name): (spec.shape, spec.dtype)
        for kind, specs in (("input", graph.spec.inputs), ("output", graph.spec.outputs))
        for spec in specs
    }
    for kind, name in sorted(said.keys() | found.keys()):
        ours, theirs = found.get((kind, name), "missing"), said.get((kind, name), "missing")
        if ours != theirs:
            raise EngineError(
                f"{graph.path}: {kind} {name} is {ours} in the graph and {theirs} in the manifest; {advice}"
            )


def drop_pages(graph: GraphFile) -> None:
    """Give the pages of the graph's mapped weights back; what the engine still reads of them is mapped in again."""
    for data in graph.weights.values():
        if isinstance(data.obj, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            data.obj.madvise(mmap.MADV_DONTNEED)
