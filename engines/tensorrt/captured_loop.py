# SPDX-License-Identifier: Apache-2.0
"""The flow loop as CUDA graphs: prefix, state row and steps captured once from TensorRT, launched by the C core.

All tensors that a prefix fills lie on the device twice, as two sides. A prefix
goes to the side that is not in use; `start_refresh` does so while the loop
still runs on the other one. Every captured graph has execution contexts of its
own, whose addresses never change afterwards. A step copies its row of numbers
(time bias, dt, the tie's path) to the device and takes the Euler step from x to y,
which is x of the next; the graphs are the same for every number of steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_edge.core import load_core
from vla_edge.engines.bindings import LoadedGraph
from vla_edge.engines.flow_loop import TIE, FlowGraphs, FlowReport, FlowRequest
from vla_edge.engines.tensorrt.cuda import RowCopy, rounded
from vla_edge.engines.tensorrt.memory_plan import spec_bytes
from vla_edge.engines.tensorrt.trt_engine import Scratch, TrtGraph, TrtRun, held_by
from vla_edge.errors import EngineError

STEP_TENSORS = ("x", "x_next", "time_bias", "dt", TIE, "weights")
FEATURES = ("cls", "pooled")
SIDES = (0, 1)
TURNS = (0, 1)
FLOAT_BYTES = 4


class CudaGraphLoop:
    """`FlowLoop` on captured graphs. The pictures' tokens, ids, masks and positions are read from the buffers of
    its `FlowGraphs` when `encode` or `start_refresh` is called; K/V stay on the device."""

    name = "cuda-graph"

    def __init__(self, graphs: FlowGraphs) -> None:
        core = load_core()
        self._flow = graphs
        self._loaded = {"prefix": _trt(graphs.prefix), "state": _trt(graphs.state), "step": _trt(graphs.step)}
        self._engine = self._loaded["prefix"].owner
        self._held = held_by(self, self._engine.cuda)
        self._high, self._low = self._held.stream(True), self._held.stream(False)
        self._side = 0
        self._sizes = self._tensor_sizes()
        self._tensors = [{name: self._zeroed(size) for name, size in self._sizes.items()} for _ in SIDES]
        rows, columns = graphs.buffers["x"].shape[-2:]
        shape = (rows, columns, graphs.buffers["time_bias"].shape[-1])
        self._layout = core.cuda_loop_layout(*shape)
        self._chunk_in = self._engine.allocate((self._layout["chunk_floats"],), "float32")
        self._step_in = self._engine.allocate((2 * self._layout["group"] + 1, self._layout["step_floats"]), "float32")
        self._x_out = self._engine.allocate((rows, columns), "float32")
        self._x, self._y = self._zeroed(self._x_out.nbytes), self._zeroed(self._x_out.nbytes)
        self._chunk, self._step = self._zeroed(self._chunk_in.nbytes), self._zeroed(self._step_in[0].nbytes)
        self._high_scratch = self._scratch("state", "step")
        low = self._scratch("prefix")
        prefix = tuple(self._captured_prefix(self._bound("prefix", side, low), side) for side in SIDES)
        state = tuple(self._captured_state(self._bound("state", side, self._high_scratch), side) for side in SIDES)
        ends = self._captured(self._high, self._begin), self._captured(self._high, self._end)
        groups = tuple(self._captured_steps(side, turn, self._layout["group"]) for side in SIDES for turn in TURNS)
        single = tuple(self._captured_steps(side, len(TURNS), 1) for side in SIDES)
        events = tuple(self._held.event() for _ in range(6))
        self._held.keep(partial(self._engine.cuda.synchronize, self._low))
        self._loop = core.CudaLoop(
            self._engine.driver,
            (self._high, self._low),
            events,  # type: ignore[arg-type]
            prefix,  # type: ignore[arg-type]
            state,  # type: ignore[arg-type]
            ends,
            groups,  # type: ignore[arg-type]
            single,  # type: ignore[arg-type]
            shape,
            self._chunk_in,
            self._step_in,
            self._x_out,
        )
        self._follow()

    def encode(self, prefix: bool) -> tuple[float, float]:
        if prefix:
            self._side = 1 - self._side
        try:
            prefix_ns, state_ns = self._loop.encode(self._side, prefix)
        except RuntimeError as error:
            raise EngineError(f"prefix and state did not run: {error}") from None
        if prefix:
            self._follow()
        return prefix_ns / 1e6, state_ns / 1e6

    def start_refresh(self) -> None:
        """Begin the prefix of the next observation on the other side and return. Its inputs in the buffers must stay as
        they are until `adopt` and the `encode(False)` behind it have returned."""
        try:
            self._loop.refresh(1 - self._side)
        except RuntimeError as error:
            raise EngineError(f"the prefix did not start: {error}") from None

    def refresh(self) -> float:
        """`start_refresh` and wait for its end, on any thread; its ms."""
        self.start_refresh()
        try:
            return self._loop.wait(1 - self._side) / 1e6
        except RuntimeError as error:
            raise EngineError(f"the prefix did not run: {error}") from None

    def adopt(self) -> None:
        """Go over to the side of `start_refresh`; the next `encode(False)` waits for it."""
        self._side = 1 - self._side
        self._follow()

    def denoise(self, request: FlowRequest) -> FlowReport:
        steps, tie = self._flow.steps_of(request), request.inpaint
        try:
            abandoned, step_ns = self._loop.denoise(
                self._side,
                np.ascontiguousarray(request.noise, np.float32),
                steps.biases,
                steps.moments,
                request.steps,
                None if tie is None else np.ascontiguousarray(tie.target, np.float32),
                None if tie is None else np.ascontiguousarray(tie.weights, np.float32),
                request.signal,
            )
        except RuntimeError as error:
            raise EngineError(f"the flow loop did not run: {error}") from None
        return FlowReport(None if abandoned else self._x_out.copy(), tuple(duration / 1e6 for duration in step_ns))

    def _tensor_sizes(self) -> dict[str, int]:
        """Bytes of every tensor that exists once a side; `mask` at its longest."""
        sizes: dict[str, int] = {}
        for graph in self._loaded.values():
            for spec in (*graph.inputs.values(), *graph.outputs.values()):
                if spec.name not in STEP_TENSORS:
                    sizes[spec.name] = max(sizes.get(spec.name, 0), spec_bytes(spec))
        return sizes

    def _zeroed(self, size: int) -> int:
        return self._held.zeroed(size, self._high)

    def _scratch(self, *names: str) -> Scratch:
        size = rounded(max(self._loaded[name].loaded.scratch for name in names))
        return Scratch(self._held.allocate(size), size)

    def _bound(self, name: str, side: int, scratch: Scratch) -> TrtRun:
        """A context of its own for one graph and side."""
        graph = self._loaded[name]
        run = self._engine.run_of(graph.loaded, scratch)
        self._held.keep(run.close)
        for tensor in (*graph.inputs, *graph.outputs):
            if tensor in self._tensors[side]:
                run.bind(tensor, self._tensors[side][tensor])
        return run

    def _captured(self, stream: int, work: Callable[[], None], *runs: TrtRun) -> int:
        graph = self._engine.capture(stream, work, runs)
        driver = self._engine.driver
        self._held.keep(lambda: driver.destroy_graph(graph))
        return graph

    def _captured_prefix(self, run: TrtRun, side: int) -> int:
        """Inputs from the host, the prefix, the gate's features to the host."""
        made = {*self._loaded["prefix"].outputs, *self._loaded["state"].outputs, "state"}
        given = sorted(set(self._sizes) - made)
        features = [name for name in FEATURES if name in self._loaded["prefix"].outputs]

        def work() -> None:
            for name in given:
                self._upload(name, side, self._low)
            run.enqueue(self._low)
            for name in features:
                host = self._flow.buffers[name]
                self._engine.cuda.to_host(host.ctypes.data, self._tensors[side][name], host.nbytes, self._low)

        return self._captured(self._low, work, run)

    def _captured_state(self, run: TrtRun, side: int) -> int:
        """The state, its K/V rows, and each row into its place in its tensor."""
        tensors = self._tensors[side]
        copies = [
            _row_copy(
                name, spec.shape, self._flow.buffers[name.removeprefix("state_")], self._flow.state_place, tensors
            )
            for name, spec in self._loaded["state"].outputs.items()
        ]

        def work() -> None:
            self._upload("state", side, self._high)
            run.enqueue(self._high)
            for copy in copies:
                self._engine.cuda.copy_rows(copy, self._high)

        return self._captured(self._high, work, run)

    def _upload(self, name: str, side: int, stream: int) -> None:
        host = self._flow.buffers[name]
        self._engine.cuda.to_device(self._tensors[side][name], host.ctypes.data, host.nbytes, stream)

    def _begin(self) -> None:
        """The chunk's noise and weights to the device; x is the noise."""
        self._engine.cuda.to_device(self._chunk, self._chunk_in.ctypes.data, self._chunk_in.nbytes, self._high)
        self._copy_to_x(self._chunk)

    def _copy_to_x(self, source: int) -> None:
        size = self._x_out.nbytes
        self._engine.cuda.copy_rows(RowCopy(self._x, size, source, size, size, 1), self._high)

    def _end(self) -> None:
        self._engine.cuda.to_host(self._x_out.ctypes.data, self._x, self._x_out.nbytes, self._high)

    def _captured_steps(self, side: int, place: int, count: int) -> int:
        """`count` steps from x to x, with the rows of `step_in` that belong to `place`."""
        expert = self._bound("step", side, self._high_scratch)
        expert.bind("x", self._x)
        expert.bind("x_next", self._y)
        expert.bind("weights", self._chunk + self._layout["weights"] * FLOAT_BYTES)
        for name, start in (("time_bias", 0), ("dt", self._layout["dt"]), (TIE, self._layout[TIE])):
            expert.bind(name, self._step + start * FLOAT_BYTES)
        first = place * self._layout["group"]

        def work() -> None:
            for row in self._step_in[first : first + count]:
                self._engine.cuda.to_device(self._step, row.ctypes.data, row.nbytes, self._high)
                expert.enqueue(self._high)
                self._copy_to_x(self._y)

        return self._captured(self._high, work, expert)

    def _follow(self) -> None:
        """The delta graphs read what the current side holds."""
        for reader in map(_trt, self._flow.readers):
            for tensor in reader.inputs:
                if tensor in self._tensors[self._side]:
                    reader.read_from_device(tensor, self._tensors[self._side][tensor])


def _row_copy(
    name: str, row: tuple[int, ...], tensor: NDArray[Any], place: int, addresses: Mapping[str, int]
) -> RowCopy:
    """Row [heads, 1, width] into its place in tensor [heads, rows, width]."""
    heads, _, width = row
    piece, pitch = width * tensor.itemsize, tensor.shape[1] * width * tensor.itemsize
    target = addresses[name.removeprefix("state_")] + place * piece
    return RowCopy(target, pitch, addresses[name], piece, piece, heads)


def _trt(graph: LoadedGraph) -> TrtGraph:
    assert isinstance(graph, TrtGraph)
    return graph
