# SPDX-License-Identifier: Apache-2.0
"""TensorRT behind the engine border: engine files built on this machine, run on device memory.

Every buffer from `allocate` is page-locked host memory with a twin on the
device (the same bytes where host and GPU share memory); both go when the array
and all views of it have gone. `TrtGraph.run` copies inputs in and outputs out
around one execution: simple and slow, the reference for the captured loop,
which builds its own `TrtRun`s and keeps tensors on the device
(engines/tensorrt/captured_loop.py).
"""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_edge.bundle import GraphFile
from vla_edge.core import load_core
from vla_edge.engines.bindings import LoadedGraph, check_buffer, check_interface
from vla_edge.engines.flow_loop import FlowGraphs, FlowLoop, PythonLoop
from vla_edge.engines.tensorrt.cuda import ALIGNMENT, Cuda, open_cuda, require_gpu, rounded
from vla_edge.engines.tensorrt.engine_build import deserialize, fresh_logger, load_compiler
from vla_edge.engines.tensorrt.engine_file import Compiler, Sidecar, fitting_sidecar, read_engine
from vla_edge.engines.tensorrt.holdings import Holdings
from vla_edge.errors import EngineError


@dataclass(frozen=True, slots=True)
class Scratch:
    """Device memory that contexts of one stream share, one run after the other."""

    address: int
    size: int


class DeviceEngine:
    """An engine file on the device, once for all sessions that run it. engine: TensorRT's object; scratch: bytes
    a context of it needs."""

    def __init__(self, name: str, engine: Any) -> None:
        self.name = name
        self.engine = engine
        self.scratch = int(engine.device_memory_size_v2)


class Block:
    """A buffer of `allocate`: host bytes, and where the device has them. What numpy takes for its memory."""

    def __init__(self, host: int, size: int, device: int) -> None:
        self.host, self.size, self.device = host, size, device
        self.__array_interface__ = {"shape": (size,), "typestr": "|u1", "data": (host, False), "version": 3}


def open_tensorrt(name: str) -> TrtEngine:
    """TensorRT ("tensorrt-pycuda": through pycuda in place of cuda-bindings) or TensorRT-RTX. EngineError names the
    first thing that is not there: driver, package, C core."""
    if name != "tensorrt-pycuda":
        return TrtEngine(name, open_cuda(), load_compiler(name))
    require_gpu()
    from vla_edge.engines.tensorrt.cuda_pycuda import open_pycuda

    return TrtEngine(name, open_pycuda(), load_compiler())


class TrtEngine:
    """Loads engine files of one device. Single runs share one stream and one scratch, fixed ones another of low
    priority. Sessions may live on different threads."""

    def __init__(self, name: str, cuda: Cuda, compiler: Compiler) -> None:
        self.name = name
        self.cuda = cuda
        self.compiler = compiler
        self.driver = _driver()
        facts = cuda.facts
        self.detail = (
            f"{compiler.name} {compiler.version}, {facts.name} (sm {facts.compute_capability}), CUDA {facts.cuda}, "
            f"driver {facts.driver}, {cuda.detail}"
        )
        self._lock = threading.Lock()
        self._blocks: weakref.WeakSet[Block] = weakref.WeakSet()
        self._engines: weakref.WeakValueDictionary[str, DeviceEngine] = weakref.WeakValueDictionary()
        self._held = held_by(self, cuda)
        self.stream, self.low = self._held.stream(True), self._held.stream(False)
        self._scratch = {self.stream: Scratch(0, 0), self.low: Scratch(0, 0)}

    def allocate(self, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        """A zeroed page-locked buffer with its twin on the device."""
        kind = np.dtype(dtype)
        size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
        held = Holdings(self.cuda)
        pinned = held.pinned(size)
        device = pinned.device if self.cuda.facts.integrated else held.zeroed(size, self.stream)
        block = Block(pinned.host, size, device)
        weakref.finalize(block, held.close).atexit = False
        with self._lock:
            self._blocks.add(block)
        array = np.asarray(block).view(kind).reshape(shape)
        array.fill(0)
        return array

    def load(self, graph: GraphFile) -> TrtGraph:
        """The graph with an execution context of its own. EngineError: not built, built for something else (the field
        is named), or damaged."""
        return TrtGraph(self, self.engine_of(graph), graph)

    def flow_loop(self, graphs: FlowGraphs) -> FlowLoop:
        """Prefix, state and steps as captured CUDA graphs; a step graph of before, without a tie, runs uncaptured."""
        if not graphs.ties:
            return PythonLoop(graphs)
        from vla_edge.engines.tensorrt.captured_loop import CudaGraphLoop

        return CudaGraphLoop(graphs)

    def engine_of(self, graph: GraphFile) -> DeviceEngine:
        """The graph's engine on the device, read from its file unless someone has it already."""
        sidecar = fitting_sidecar(graph, self.compiler, self.cuda.facts)
        with self._lock:
            loaded = self._engines.get(sidecar.engine_sha256)
            if loaded is None:
                loaded = self._deserialized(graph, sidecar)
                self._engines[sidecar.engine_sha256] = loaded
            return loaded

    def _deserialized(self, graph: GraphFile, sidecar: Sidecar) -> DeviceEngine:
        self.cuda.enter()
        trt = self.compiler.module
        data = read_engine(graph, self.compiler, sidecar)
        loaded = DeviceEngine(graph.name, deserialize(trt, data, str(graph.path)))
        _check_interface(trt, loaded.engine, graph)
        if not self.compiler.portable and loaded.scratch != sidecar.device_memory:
            raise EngineError(
                f"{graph.path}: device_memory is {sidecar.device_memory} in the sidecar and {loaded.scratch} in the "
                f"engine file; {self.compiler.again}"
            )
        return loaded

    def device_address(self, array: NDArray[Any]) -> int:
        """Where the device has the bytes of `array`, a buffer of `allocate` or a part of one."""
        start = array.ctypes.data
        with self._lock:
            for block in self._blocks:
                if block.host <= start and start + array.nbytes <= block.host + block.size:
                    return block.device + start - block.host
        raise EngineError(f"{self.name}: the buffer was not made by this engine's allocate; bind one that was")

    def scratch(self, stream: int, size: int) -> Scratch:
        """What the runs on a stream share, at least `size` bytes. Runs that hold an older, smaller one keep it."""
        with self._lock:
            if self._scratch[stream].size < size:
                self._scratch[stream] = Scratch(self._held.allocate(size), rounded(size))
            return self._scratch[stream]

    def run_of(self, loaded: DeviceEngine, scratch: Scratch) -> TrtRun:
        """One more execution context of an engine, on caller-owned scratch."""
        self.cuda.enter()
        trt = self.compiler.module
        logger = fresh_logger(trt)
        context = loaded.engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None:
            raise EngineError(
                f"graph {loaded.name}: TensorRT makes no execution context ({logger.reason()}); free memory on the "
                "device"
            )
        if loaded.scratch:
            context.set_device_memory(scratch.address, scratch.size)
        return TrtRun(context, loaded.name, logger.reason)

    def capture(self, stream: int, work: Callable[[], None], runs: Sequence[TrtRun] = ()) -> int:
        """The executable graph of what `work` puts on `stream`. It is run once before, as TensorRT asks.

        runs: the contexts that are in the graph, in no other one, and keep their addresses from now on. EngineError:
        any call failed; the stream is usable again then.
        """
        self.cuda.enter()
        work()
        self.cuda.synchronize(stream)
        try:
            with _no_collection():
                self.driver.begin_capture(stream)
                try:
                    work()
                except BaseException:
                    self.driver.cancel_capture(stream)
                    raise
                graph = int(self.driver.end_capture(stream))
        except RuntimeError as error:
            raise EngineError(f"{self.name}: the graph cannot be captured: {error}") from None
        for run in runs:
            run.fix()
        return graph


class TrtRun:
    """One execution context with device addresses for its tensors."""

    def __init__(self, context: Any, graph: str, reason: Callable[[], str]) -> None:
        self._context = context
        self._graph = graph
        self._reason = reason
        self._fixed = False

    def bind(self, name: str, device: int) -> None:
        """Tensor `name` is at `device` from now on."""
        if self._fixed:
            raise EngineError(f"graph {self._graph}: {name} is captured at its address, which cannot change any more")
        if device % ALIGNMENT:
            raise EngineError(
                f"graph {self._graph}: {name} would lie at an address that is no multiple of {ALIGNMENT} bytes; "
                "TensorRT does not take it"
            )
        if not self._context.set_tensor_address(name, device):
            raise EngineError(f"graph {self._graph}: TensorRT refuses the address of {name} ({self._reason()})")

    def fix(self) -> None:
        """The context is part of one captured graph: no address changes, and no second graph takes it."""
        if self._fixed:
            raise EngineError(f"graph {self._graph}: one execution context is captured into two graphs")
        self._fixed = True

    def close(self) -> None:
        """Give the context back."""
        self._context = None

    def enqueue(self, stream: int) -> None:
        """Put one execution on `stream`; returns before it ran."""
        if not self._context.execute_async_v3(stream):
            raise EngineError(
                f"graph {self._graph}: TensorRT could not enqueue the run ({self._reason()}); look at the kernel log "
                "for GPU errors"
            )


class TrtGraph(LoadedGraph):
    """One engine bound to its buffers. source: the graph it was built from."""

    def __init__(self, owner: TrtEngine, loaded: DeviceEngine, graph: GraphFile) -> None:
        super().__init__(graph)
        self.owner = owner
        self.loaded = loaded
        self.source = graph
        self._run = owner.run_of(loaded, owner.scratch(owner.stream, loaded.scratch))
        self._copies: dict[str, tuple[NDArray[Any], int]] = {}

    def read_from_device(self, name: str, device: int) -> None:
        """Read input `name` from device memory that someone else keeps up to date; its host buffer is not looked at."""
        self._run.bind(name, device)
        self._copies.pop(name, None)
        self._missing.discard(name)

    def fixed(self, buffers: Mapping[str, NDArray[Any]]) -> Callable[[], None]:
        """Captured once, with a context of its own, and launched on the low-priority stream."""
        return FixedRun(self, buffers).launch

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


class FixedRun:
    """A graph with its copies in and out as one captured CUDA graph; other threads may run other graphs beside it."""

    def __init__(self, graph: TrtGraph, buffers: Mapping[str, NDArray[Any]]) -> None:
        self._owner, self._name, self._buffers = graph.owner, graph.name, buffers
        held = held_by(self, self._owner.cuda)
        run = self._owner.run_of(graph.loaded, self._owner.scratch(self._owner.low, graph.loaded.scratch))
        held.keep(run.close)
        cuda, stream, driver = self._owner.cuda, self._owner.low, self._owner.driver
        devices = {name: self._owner.device_address(array) for name, array in buffers.items()}
        for name, array in buffers.items():
            spec = graph.inputs.get(name) or graph.outputs.get(name)
            check_buffer(graph.name, "input" if name in graph.inputs else "output", spec, name, array)
            run.bind(name, devices[name])

        def work() -> None:
            for name in () if cuda.facts.integrated else graph.inputs:
                cuda.to_device(devices[name], buffers[name].ctypes.data, buffers[name].nbytes, stream)
            run.enqueue(stream)
            for name in () if cuda.facts.integrated else graph.outputs:
                cuda.to_host(buffers[name].ctypes.data, devices[name], buffers[name].nbytes, stream)

        self._graph = captured = self._owner.capture(stream, work, [run])
        held.keep(lambda: driver.destroy_graph(captured))

    def launch(self) -> None:
        """Run it; returns when its outputs are there."""
        owner = self._owner
        try:
            owner.driver.launch(self._graph, owner.low)
        except RuntimeError as error:
            raise EngineError(f"graph {self._name}: run failed: {error}") from None
        owner.cuda.enter()
        owner.cuda.synchronize(owner.low)


def held_by(owner: object, cuda: Cuda) -> Holdings:
    """Holdings that are given back when `owner` goes; not at the end of the process, which gives all back by itself."""
    held = Holdings(cuda)
    weakref.finalize(owner, held.close).atexit = False
    return held


@contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage collection: memory freed in the middle of a capture would end it."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def _driver() -> Any:
    try:
        return load_core().CudaDriver()
    except RuntimeError as error:
        raise EngineError(f"the C core cannot use the NVIDIA driver: {error}") from None


def _check_interface(trt: Any, engine: Any, graph: GraphFile) -> None:
    """The engine's tensors must be the manifest's, and the engine fit for capture."""
    names = {
        trt.DataType.FLOAT: "float32",
        trt.DataType.HALF: "float16",
        trt.DataType.INT8: "int8",
        trt.DataType.INT32: "int32",
        trt.DataType.INT64: "int64",
        trt.DataType.UINT8: "uint8",
        trt.DataType.BOOL: "bool",
    }
    found = {}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        kind = "input" if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else "output"
        found[kind, name] = (tuple(engine.get_tensor_shape(name)), names.get(engine.get_tensor_dtype(name), "unknown"))
    check_interface(graph, found, "build its engine file again")
    if engine.num_aux_streams != 0:
        raise EngineError(
            f"{graph.path}: the engine uses {engine.num_aux_streams} streams of its own, a captured one may use none; "
            "build it again"
        )
