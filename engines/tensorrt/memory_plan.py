# SPDX-License-Identifier: Apache-2.0
"""Will a bundle's engine files fit: said before anything is built, from the bundle's files and the size of the board.

What is counted is exact: the bytes of every graph's weights (those that
`prefix` and `state` share on disk stand in both engine files), of its inputs
and outputs, of the workspace the builder may use. What cannot be known before a
build is a named allowance below, assumed and not measured; after a build the
sidecars' own numbers replace the scratch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from vla_edge.bundle import Bundle, GraphFile, Programme, TensorSpec
from vla_edge.engines.onnx_file import external_tensors

MB = 1 << 20
SYSTEM = 1536 * MB
"""allowance: operating system, Python and this package on a board whose GPU shares the host's memory"""
CONTEXT = 512 * MB
"""allowance: CUDA context, kernels and TensorRT's own libraries in one process"""
SCRATCH = 64 * MB
"""allowance: activations of one graph before its engine file says its device memory (TensorRT-RTX 1.7 counts 8 to 24 MB
for graphs of full size in half precision, 113 MB where attention is left unfused)"""
BUILD_COPIES = 4
"""a build holds the graph with its tensors put in, the parser's copy, the builder's on the device, the result"""
HOST_COPIES = 3
"""of those, the ones in the host's memory"""
SIDES = 3
"""tensors that cross between graphs: one for single runs and the two sides of the captured loops"""


@dataclass(frozen=True, slots=True)
class Board:
    """memory: bytes of the GPU, or of the whole board when `integrated` (host and GPU share it). host: bytes of host
    memory beside a GPU with its own."""

    memory: int
    integrated: bool
    host: int = 0


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes. weights: by graph; twice: of these, what engine files hold a second time though the bundle stores it once;
    measured: the scratch is the engine files' own, not an allowance; build, run: peak on the GPU (with the host's share
    where they are one memory); build_host: peak of a build in the
    host's own memory, 0 where that is the same; advice: what to do when it does not fit, most effective first."""

    weights: Mapping[str, int]
    twice: int
    build: int
    build_graph: str
    build_host: int
    run: int
    board: Board
    measured: bool
    advice: tuple[str, ...] = ()

    @property
    def fits_build(self) -> bool:
        return self.build <= self.board.memory and (self.board.integrated or self.build_host <= self.board.host)

    @property
    def fits_run(self) -> bool:
        return self.run <= self.board.memory

    def lines(self) -> list[str]:
        """The plan in words."""
        total = sum(self.weights.values())
        here = "shared by host and GPU" if self.board.integrated else "on the GPU"
        made = [
            f"weights in the engine files: {total / MB:.0f} MB "
            f"({', '.join(f'{name} {size / MB:.0f}' for name, size in self.weights.items())}); {self.twice / MB:.0f} "
            "MB of them stand in two of them",
            f"build: {self.build / MB:.0f} MB at most, for {self.build_graph}; run: {self.run / MB:.0f} MB; memory "
            f"{here}: {self.board.memory / MB:.0f} MB",
        ]
        if not self.board.integrated:
            made.append(f"build, host memory: {self.build_host / MB:.0f} MB of {self.board.host / MB:.0f} MB")
        fits = (
            "fits"
            if self.fits_build and self.fits_run
            else "does not fit: " + ("building" if self.fits_run else "running")
        )
        assumed = "system and context" if self.measured else "system, context and scratch"
        return [
            *made,
            f"{fits} (allowances for {assumed} are assumed, not measured)",
            *(f"- {line}" for line in self.advice),
        ]


def plan_memory(bundle: Bundle, board: Board, workspace: int, scratch: Mapping[str, int] | None = None) -> MemoryPlan:
    """scratch: device memory by graph, of every graph of the bundle, from existing sidecars. BundleError: a damaged
    graph."""
    graphs = [bundle.graph(name) for name in bundle.manifest.graphs]
    weights = {graph.name: graph_weights(graph) for graph in graphs}
    largest = max(weights, key=lambda name: weights[name])
    base = CONTEXT + (SYSTEM if board.integrated else 0)
    copies = BUILD_COPIES if board.integrated else BUILD_COPIES - HOST_COPIES
    build = base + copies * weights[largest] + workspace
    known = scratch or dict.fromkeys(weights, SCRATCH)
    streams = sum(max((known[name] for name in names), default=0) for names in streams_of(bundle.manifest.programme))
    run = base + sum(weights.values()) + streams + SIDES * tensor_bytes(graphs)
    host = 0 if board.integrated else HOST_COPIES * weights[largest] + CONTEXT
    twice = sum(weights.values()) - distinct_weights(graphs)
    plan = MemoryPlan(weights, twice, build, largest, host, run, board, scratch is not None)
    if plan.fits_build and plan.fits_run:
        return plan
    return replace(plan, advice=tuple(_advice(plan, workspace, bundle)))


def streams_of(programme: Programme) -> tuple[tuple[str, ...], ...]:
    """The graphs of the flow loop, of a refresh beside it, of pictures, of single runs: those of a stream share their
    scratch."""
    loops = ((*programme.moment, programme.step), programme.scene) if programme.step else ()
    return *loops, (programme.camera,), programme.order()


def _advice(plan: MemoryPlan, workspace: int, bundle: Bundle) -> Iterable[str]:
    if bundle.manifest.precision.get("requested") == "fp32":
        yield "export the bundle with half-precision matrices: engine files and build take about half"
    if not plan.fits_build and workspace > 256 * MB:
        yield f"give the builder less workspace than {workspace / MB:.0f} MB (--workspace 256)"
    if not plan.fits_build and plan.board.integrated:
        yield (
            "stop the desktop while building (sudo systemctl isolate multi-user.target), and add 8 GB of swap on "
            "NVMe for the host's share of the build"
        )
    corrections = sum(plan.weights[name] for name in bundle.manifest.programme.correct)
    if not plan.fits_run and corrections:
        yield f"export without the delta expert: {corrections / MB:.0f} MB less"
    if not plan.fits_run:
        yield "use a board with more memory, or backend ort on the CPU"


def graph_weights(graph: GraphFile) -> int:
    """Bytes of weights in this graph's engine file: its external tensors and what the model holds inline."""
    return sum(tensor.length for tensor in external_tensors(graph.model)) + len(graph.model)


def distinct_weights(graphs: Iterable[GraphFile]) -> int:
    """Bytes when every external tensor counts once, as on disk."""
    stored: dict[tuple[str, int], int] = {}
    inline = 0
    for graph in graphs:
        inline += len(graph.model)
        stored.update({(tensor.file, tensor.offset): tensor.length for tensor in external_tensors(graph.model)})
    return inline + sum(stored.values())


def tensor_bytes(graphs: Iterable[GraphFile]) -> int:
    """Bytes of all inputs and outputs, each name once at its largest."""
    sizes: dict[str, int] = {}
    for graph in graphs:
        for spec in (*graph.spec.inputs, *graph.spec.outputs):
            sizes[spec.name] = max(sizes.get(spec.name, 0), spec_bytes(spec))
    return sum(sizes.values())


def spec_bytes(spec: TensorSpec) -> int:
    return int(np.prod(spec.shape, dtype=np.int64)) * np.dtype(spec.dtype).itemsize
