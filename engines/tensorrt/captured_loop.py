"""The flow loop as CUDA graphs: prefix, state row and steps captured once from TensorRT, launched by the C core.

All tensors that a prefix fills lie on the device twice, as two sides. A prefix
goes to the side that is not in use; `start_refresh` does so while the loop
still runs on the other one. Ten steps are one launch, each with its own row of
the time table and its own `dt`, x going back and forth between two buffers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_edge.engines.bindings import LoadedGraph
from vla_edge.engines.flow_loop import FlowGraphs, FlowReport, FlowRequest
from vla_edge.engines.tensorrt.cuda import RowCopy, rounded
from vla_edge.engines.tensorrt.memory_plan import spec_bytes
from vla_edge.engines.tensorrt.trt_engine import Scratch, TrtGraph, TrtRun
from vla_edge.errors import EngineError

STEP_INPUTS = ("x", "time_bias", "dt")
FEATURES = ("cls", "pooled")
SIDES = (0, 1)


class CudaGraphLoop:
    """`FlowLoop` on captured graphs. The pictures' tokens, ids, masks and positions are read from the buffers of
    its `FlowGraphs` when `encode` or `start_refresh` is called; K/V stay on the device."""

    name = "cuda-graph"

    def __init__(self, graphs: FlowGraphs) -> None:
        from vla_edge import _core

        self._flow = graphs
        self._loaded = {"prefix": _trt(graphs.prefix), "state": _trt(graphs.state), "step": _trt(graphs.step)}
        self._engine = self._loaded["prefix"].owner
        cuda = self._engine.cuda
        cuda.enter()
        self._high, self._low = cuda.stream(True), cuda.stream(False)
        self._side = 0
        self._sizes = self._tensor_sizes()
        self._tensors = [{name: self._engine.zeroed(size) for name, size in self._sizes.items()} for _ in SIDES]
        x_bytes = graphs.buffers["x"].nbytes
        self._x = (self._engine.zeroed(x_bytes), self._engine.zeroed(x_bytes))
        self._x_in, self._x_out = (self._engine.allocate(graphs.buffers["x"].shape, "float32") for _ in SIDES)
        high, low = self._scratch("state", "step"), self._scratch("prefix")
        self._experts = [self._bound("step", side, high) for side in SIDES]
        self._graphs = [
            (
                self._captured_prefix(self._bound("prefix", side, low), side),
                self._captured_state(self._bound("state", side, high), side),
            )
            for side in SIDES
        ]
        self._captured: set[int] = set()
        self._loop = _core.CudaLoop(
            self._engine.driver,
            (self._high, self._low),
            (cuda.event(), cuda.event(), cuda.event(), cuda.event(), cuda.event(), cuda.event()),
            (self._graphs[0][0], self._graphs[1][0]),
            (self._graphs[0][1], self._graphs[1][1]),
            self._x,
            self._x_in,
            self._x_out,
            graphs.buffers["x"].shape[-1],
        )
        self._capture_steps(max(self._flow.biases))
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
        """Begin the prefix of the next observation on the other side and return. Its inputs in its `FlowGraphs` must stay as
        they
        are until `adopt` and the `encode(False)` behind it have returned."""
        try:
            self._loop.refresh(1 - self._side)
        except RuntimeError as error:
            raise EngineError(f"the prefix did not start: {error}") from None

    def adopt(self) -> None:
        """Go over to the side of `start_refresh`; the next `encode(False)` waits for it."""
        self._side = 1 - self._side
        self._follow()

    def denoise(self, request: FlowRequest) -> FlowReport:
        self._flow.checked_biases(request)
        if request.steps not in self._captured:
            self._capture_steps(request.steps)
        tie = request.inpaint
        try:
            abandoned, step_ns = self._loop.denoise(
                self._side,
                np.ascontiguousarray(request.noise, np.float32),
                request.steps,
                None if tie is None else np.ascontiguousarray(tie.target, np.float32),
                None if tie is None else np.ascontiguousarray(tie.weights, np.float32),
                request.signal,
            )
        except RuntimeError as error:
            raise EngineError(f"the flow loop did not run: {error}") from None
        return FlowReport(None if abandoned else self._x_out[0].copy(), tuple(duration / 1e6 for duration in step_ns))

    def _tensor_sizes(self) -> dict[str, int]:
        """Bytes of every tensor that exists once a side; `mask` at its longest."""
        sizes: dict[str, int] = {}
        for graph in self._loaded.values():
            for spec in (*graph.inputs.values(), *graph.outputs.values()):
                if spec.name not in (*STEP_INPUTS, "x_next"):
                    sizes[spec.name] = max(sizes.get(spec.name, 0), spec_bytes(spec))
        return sizes

    def _scratch(self, *names: str) -> Scratch:
        size = rounded(max(self._loaded[name].scratch_size for name in names))
        return Scratch(self._engine.cuda.allocate(size), size)

    def _bound(self, name: str, side: int, scratch: Scratch) -> TrtRun:
        """A context of its own for one graph and side."""
        graph = self._loaded[name]
        run = self._engine.run_of(graph, scratch)
        for tensor in (*graph.inputs, *graph.outputs):
            if tensor in self._tensors[side]:
                run.bind(tensor, self._tensors[side][tensor])
        return run

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

        return self._engine.capture(self._low, work)

    def _captured_state(self, run: TrtRun, side: int) -> int:
        """The state, its K/V rows, and each row into the last place of its tensor."""
        tensors = self._tensors[side]
        copies = [
            _row_copy(name, spec.shape, self._flow.buffers[name.removeprefix("state_")], tensors)
            for name, spec in self._loaded["state"].outputs.items()
        ]

        def work() -> None:
            self._upload("state", side, self._high)
            run.enqueue(self._high)
            for copy in copies:
                self._engine.cuda.copy_rows(copy, self._high)

        return self._engine.capture(self._high, work)

    def _upload(self, name: str, side: int, stream: int) -> None:
        host = self._flow.buffers[name]
        self._engine.cuda.to_device(self._tensors[side][name], host.ctypes.data, host.nbytes, stream)

    def _capture_steps(self, count: int) -> None:
        """Capture the loop of `count` steps for both sides: as a whole, and step by step."""
        cuda = self._engine.cuda
        rows = self._rows(self._flow.biases[count])
        dt = self._rows(np.full((count, 1), -1 / count, np.float32))
        finish = self._engine.allocate((count + 1,), "float32")
        finish[:] = [*(-(count - k) / count for k in range(count)), -1 / count]
        for side, run in enumerate(self._experts):

            def step(k: int, run: TrtRun = run) -> None:
                run.bind("x", self._x[k % 2])
                run.bind("x_next", self._x[(k + 1) % 2])
                run.bind("time_bias", rows[k])
                run.bind("dt", dt[k])
                run.enqueue(self._high)

            def whole() -> None:
                cuda.to_device(self._x[0], self._x_in.ctypes.data, self._x_in.nbytes, self._high)
                for k in range(count):
                    step(k)
                cuda.to_host(self._x_out.ctypes.data, self._x[count % 2], self._x_out.nbytes, self._high)

            steps = tuple(self._engine.capture(self._high, lambda k=k: step(k)) for k in range(count))  # type: ignore[misc]
            self._loop.add_steps(side, self._engine.capture(self._high, whole), steps, dt, finish)
        self._captured.add(count)

    def _rows(self, table: NDArray[np.float32]) -> tuple[int, ...]:
        """The rows of a table on the device, each on an address TensorRT takes."""
        cuda = self._engine.cuda
        width = table.shape[1] * table.itemsize
        stride = rounded(width)
        host = self._engine.allocate((len(table), stride // table.itemsize), "float32")
        host[:, : table.shape[1]] = table
        device = cuda.allocate(host.nbytes)
        cuda.to_device(device, host.ctypes.data, host.nbytes, self._high)
        cuda.synchronize(self._high)
        return tuple(device + k * stride for k in range(len(table)))

    def _follow(self) -> None:
        """The delta graphs read what the current side holds."""
        for reader in map(_trt, self._flow.readers):
            for tensor in reader.inputs:
                if tensor in self._tensors[self._side]:
                    reader.read_from_device(tensor, self._tensors[self._side][tensor])


def _row_copy(name: str, row: tuple[int, ...], tensor: NDArray[Any], addresses: Mapping[str, int]) -> RowCopy:
    """Row [heads, 1, width] into the last place of tensor [heads, rows, width]."""
    heads, _, width = row
    piece, pitch = width * tensor.itemsize, tensor.shape[1] * width * tensor.itemsize
    return RowCopy(addresses[name.removeprefix("state_")] + pitch - piece, pitch, addresses[name], piece, piece, heads)


def _trt(graph: LoadedGraph) -> TrtGraph:
    assert isinstance(graph, TrtGraph)
    return graph
