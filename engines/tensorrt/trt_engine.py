"""TensorRT behind the engine border: plans built on this machine, run on device memory.

Every buffer from `allocate` is page-locked host memory with a twin on the
device (the same bytes where host and GPU share memory). `TrtGraph.run` copies
inputs in and outputs out around one execution: simple and slow, the reference
for the captured loop, which builds its own `TrtRun`s and keeps tensors on the
device (engines/tensorrt/captured_loop.py).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_edge.bundle import GraphFile
from vla_edge.engines.bindings import LoadedGraph, check_interface
from vla_edge.engines.engine import EngineOptions
from vla_edge.engines.flow_loop import FlowGraphs, FlowLoop
from vla_edge.engines.tensorrt.cuda import ALIGNMENT, Cuda, open_cuda, require_gpu, rounded
from vla_edge.engines.tensorrt.engine_build import deserialize, load_tensorrt
from vla_edge.engines.tensorrt.engine_file import identity_of, read_plan
from vla_edge.errors import EngineError


@dataclass(frozen=True, slots=True)
class Scratch:
    """Device memory that contexts of one stream share, one run after the other."""

    address: int
    size: int


@dataclass(frozen=True, slots=True)
class _Block:
    """A buffer of `allocate`: host bytes and where the device has them."""

    host: int
    size: int
    device: int


def open_tensorrt(options: EngineOptions) -> TrtEngine:
    """TensorRT through cuda-bindings. EngineError names the first thing that is not there: driver, package, C core."""
    return TrtEngine("tensorrt", open_cuda())


def open_tensorrt_pycuda(options: EngineOptions) -> TrtEngine:
    """The same through pycuda, by explicit choice."""
    require_gpu()
    from vla_edge.engines.tensorrt.cuda_pycuda import open_pycuda

    return TrtEngine("tensorrt-pycuda", open_pycuda())


class TrtEngine:
    """Loads plans of one device; one stream for single runs, with one scratch for all of them."""

    def __init__(self, name: str, cuda: Cuda) -> None:
        self.name = name
        self.cuda = cuda
        self.trt = load_tensorrt()
        self.driver = _driver()
        facts = cuda.facts
        self.detail = (
            f"TensorRT {self.trt.__version__}, {facts.name} (sm {facts.compute_capability}), CUDA {facts.cuda}, "
            f"driver {facts.driver}, {cuda.detail}"
        )
        self.stream = cuda.stream(True)
        self._blocks: list[_Block] = []
        self._scratch = Scratch(0, 0)

    def allocate(self, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        """A zeroed page-locked buffer with its twin on the device."""
        kind = np.dtype(dtype)
        size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
        pinned = self.cuda.pinned(size)
        array = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(pinned.host)).view(kind).reshape(shape)
        array.fill(0)
        device = pinned.device if self.cuda.facts.integrated else self.zeroed(size)
        self._blocks.append(_Block(pinned.host, size, device))
        return array

    def zeroed(self, size: int) -> int:
        """Device memory of `size` zero bytes."""
        device = self.cuda.allocate(size)
        self.cuda.zero(device, size, self.stream)
        self.cuda.synchronize(self.stream)
        return device

    def load(self, graph: GraphFile) -> TrtGraph:
        """Load the graph's plan. EngineError: not built, built for something else (the field is named), or damaged."""
        self.cuda.enter()
        plan, sidecar = read_plan(graph, identity_of(graph, self.trt.__version__, self.cuda.facts))
        engine = deserialize(self.trt, plan, str(graph.path))
        _check_interface(self.trt, engine, graph)
        scratch = int(engine.device_memory_size_v2)
        if scratch != sidecar.device_memory:
            raise EngineError(
                f"{graph.path}: device_memory is {sidecar.device_memory} in the sidecar and {scratch} in the plan; "
                "build it again on this machine"
            )
        return TrtGraph(self, engine, graph)

    def flow_loop(self, graphs: FlowGraphs) -> FlowLoop:
        """Prefix, state and steps as captured CUDA graphs."""
        from vla_edge.engines.tensorrt.captured_loop import CudaGraphLoop

        return CudaGraphLoop(graphs)

    def device_address(self, array: NDArray[Any]) -> int:
        """Where the device has the bytes of `array`, a buffer of `allocate` or a part of one."""
        start = array.ctypes.data
        for block in self._blocks:
            if block.host <= start and start + array.nbytes <= block.host + block.size:
                return block.device + start - block.host
        raise EngineError(f"{self.name}: the buffer was not made by this engine's allocate; bind one that was")

    def scratch(self, size: int) -> Scratch:
        """The scratch of single runs, at least `size` bytes. Runs that hold an older, smaller one keep it."""
        if self._scratch.size < size:
            self._scratch = Scratch(self.cuda.allocate(size), rounded(size))
        return self._scratch

    def run_of(self, graph: TrtGraph, scratch: Scratch) -> TrtRun:
        """One more execution context of a loaded graph's engine, on caller-owned scratch."""
        context = graph.engine.create_execution_context(self.trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None:
            raise EngineError(f"graph {graph.name}: TensorRT makes no execution context; free memory on the device")
        if graph.scratch_size:
            context.set_device_memory(scratch.address, scratch.size)
        return TrtRun(context, graph.name)

    def capture(self, stream: int, work: Callable[[], None]) -> int:
        """The executable graph of what `work` puts on `stream`. It is run once before, as TensorRT asks.

        EngineError: any call failed; the stream is usable again then.
        """
        self.cuda.enter()
        work()
        self.cuda.synchronize(stream)
        try:
            self.driver.begin_capture(stream)
            try:
                work()
            except EngineError:
                self.driver.cancel_capture(stream)
                raise
            return int(self.driver.end_capture(stream))
        except RuntimeError as error:
            raise EngineError(f"{self.name}: the graph cannot be captured: {error}") from None


class TrtRun:
    """One execution context with device addresses for its tensors."""

    def __init__(self, context: Any, graph: str) -> None:
        self._context = context
        self._graph = graph

    def bind(self, name: str, device: int) -> None:
        """Tensor `name` is at `device` from now on."""
        if device % ALIGNMENT:
            raise EngineError(
                f"graph {self._graph}: {name} would lie at an address that is no multiple of {ALIGNMENT} bytes; "
                "TensorRT does not take it"
            )
        if not self._context.set_tensor_address(name, device):
            raise EngineError(f"graph {self._graph}: TensorRT refuses the address of {name}")

    def enqueue(self, stream: int) -> None:
        """Put one execution on `stream`; returns before it ran."""
        if not self._context.execute_async_v3(stream):
            raise EngineError(
                f"graph {self._graph}: TensorRT could not enqueue the run; look at the kernel log for GPU errors"
            )


class TrtGraph(LoadedGraph):
    """One plan bound to its buffers. scratch_size: bytes a context of it needs."""

    def __init__(self, owner: TrtEngine, engine: Any, graph: GraphFile) -> None:
        super().__init__(graph)
        self.owner = owner
        self.engine = engine
        self.scratch_size = int(engine.device_memory_size_v2)
        self._run = owner.run_of(self, owner.scratch(self.scratch_size))
        self._copies: dict[str, tuple[NDArray[Any], int]] = {}

    def read_from_device(self, name: str, device: int) -> None:
        """Read input `name` from device memory that someone else keeps up to date; its host buffer is not looked at."""
        self._run.bind(name, device)
        self._copies.pop(name, None)
        self._missing.discard(name)

    def _execute(self) -> None:
        cuda, stream = self.owner.cuda, self.owner.stream
        cuda.enter()
        copies = {} if cuda.facts.integrated else self._copies
        for name, (array, device) in copies.items():
            if name in self.inputs:
                cuda.to_device(device, array.ctypes.data, array.nbytes, stream)
        self._run.enqueue(stream)
        for name, (array, device) in copies.items():
            if name in self.outputs:
                cuda.to_host(array.ctypes.data, device, array.nbytes, stream)
        cuda.synchronize(stream)

    def _attach(self, name: str, array: NDArray[Any]) -> None:
        device = self.owner.device_address(array)
        self._run.bind(name, device)
        self._copies[name] = (array, device)


def _driver() -> Any:
    try:
        from vla_edge import _core
    except ImportError:
        raise EngineError(
            "the C core vla_edge._core is not built; install a C compiler and reinstall vla-edge"
        ) from None
    try:
        return _core.CudaDriver()
    except RuntimeError as error:
        raise EngineError(f"the C core cannot use the NVIDIA driver: {error}") from None


def _check_interface(trt: Any, engine: Any, graph: GraphFile) -> None:
    """The plan's tensors must be the manifest's, and the plan fit for capture."""
    names = {
        trt.DataType.FLOAT: "float32", trt.DataType.HALF: "float16", trt.DataType.INT8: "int8", trt.DataType.INT32: "int32",
        trt.DataType.INT64: "int64", trt.DataType.UINT8: "uint8", trt.DataType.BOOL: "bool",
    }  # fmt: skip
    found = {}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        kind = "input" if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else "output"
        found[kind, name] = (tuple(engine.get_tensor_shape(name)), names.get(engine.get_tensor_dtype(name), "unknown"))
    check_interface(graph, found, "build its engine file again")
    if engine.num_aux_streams != 0:
        raise EngineError(
            f"{graph.path}: the plan uses {engine.num_aux_streams} streams of its own, a captured one may use none; "
            "build it again"
        )
