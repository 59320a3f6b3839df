# SPDX-License-Identifier: Apache-2.0
"""TensorRT and CUDA as far as our own code can tell them apart: for tests of that code, not of any device.

"Device memory" is host memory, a "engine file" is the ONNX model, an execution runs it
with ONNX Runtime on the CPU. Work put on a stream runs at once, or, while the
stub driver library captures, is written down and run when the C core launches
the graph. So addresses, sides, row copies and order are really followed; timing,
overlap and TensorRT's own behaviour are not.
"""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
import types
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from vla_edge.engines.tensorrt.cuda import CudaBindings, GpuFacts, Pinned, RowCopy, rounded

LISTENER = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_size_t)
LARGE = 64 << 20
"""bytes; models beyond are taken without being checked"""
FACTS = GpuFacts("Emulated", "8.7", 8, 8 << 30, False, "12.6", "540.4.0")


def stub_driver(folder: Path) -> Path:
    """The stub driver library, compiled into `folder` as the process's libcuda.so.1; skips the test without gcc."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc to build the stub driver")
    out = folder / "libcuda.so.1"
    source = Path(__file__).resolve().parents[1] / "runtime" / "core" / "c" / "stub_cuda.c"
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run(["gcc", *flags, str(source), "-o", str(out)], check=True)
    return out


class Captured:
    """What a thread put on the stream while the stub driver library captured, run when the C core launches it."""

    def __init__(self, library: Path) -> None:
        self.recording: list[Callable[[], object]] | None = None
        self.graphs: dict[int, list[Callable[[], object]]] = {}
        self._listener = LISTENER(self._heard)
        self._library = ctypes.CDLL(str(library))
        self._library.stub_listen(self._listener)

    def close(self) -> None:
        self._library.stub_listen(LISTENER())

    def _heard(self, what: bytes, handle: int) -> None:
        if what == b"begin":
            self.recording = []
        elif what == b"made":
            assert self.recording is not None
            self.graphs[handle], self.recording = self.recording, None
        elif what == b"drop":
            self.recording = None
        elif what == b"destroy":
            self.graphs.pop(handle, None)  # a test before may have made it: sessions go when they are collected
        else:
            for work in self.graphs[handle]:
                work()

    def put(self, work: Callable[[], object]) -> None:
        if self.recording is None:
            work()
        else:
            self.recording.append(work)


class EmulatedCuda(Captured):
    """`Cuda` over host memory, with what the stub driver captured."""

    detail = "emulated"

    def __init__(self, library: Path, facts: GpuFacts = FACTS) -> None:
        super().__init__(library)
        self.facts = facts
        self._memory: dict[int, Any] = {}
        self._handle = 0xF000
        self._handles: set[int] = set()

    def enter(self) -> None:
        pass

    def free(self, device: int) -> None:
        del self._memory[device]

    def free_pinned(self, host: int) -> None:
        del self._memory[host]

    def destroy_stream(self, stream: int) -> None:
        self._handles.remove(stream)

    def destroy_event(self, event: int) -> None:
        self._handles.remove(event)

    def stream(self, high_priority: bool) -> int:
        self._handle += 1
        self._handles.add(self._handle)
        return self._handle

    def event(self) -> int:
        self._handle += 1
        self._handles.add(self._handle)
        return self._handle

    def allocate(self, size: int) -> int:
        raw = np.zeros(rounded(size) + 256, np.uint8)
        address = raw.ctypes.data + -raw.ctypes.data % 256
        self._memory[address] = raw
        return int(address)

    def pinned(self, size: int) -> Pinned:
        address = self.allocate(size)
        return Pinned(address, address)

    def held(self) -> tuple[int, int]:
        """How many pieces of memory, and how many streams and events, have not been given back."""
        return len(self._memory), len(self._handles)

    def zero(self, device: int, size: int, stream: int) -> None:
        self.put(lambda: ctypes.memset(device, 0, size) and None)

    def to_device(self, device: int, host: int, size: int, stream: int) -> None:
        self.put(lambda: ctypes.memmove(device, host, size) and None)

    def to_host(self, host: int, device: int, size: int, stream: int) -> None:
        self.put(lambda: ctypes.memmove(host, device, size) and None)

    def copy_rows(self, rows: RowCopy, stream: int) -> None:
        def work() -> None:
            for row in range(rows.rows):
                ctypes.memmove(rows.target + row * rows.target_pitch, rows.source + row * rows.source_pitch, rows.width)

        self.put(work)

    def synchronize(self, stream: int) -> None:
        assert self.recording is None, "a stream is synchronised while it is captured"


class BindingsOnStub(Captured, CudaBindings):
    """Real cuda-bindings over the stub driver library, which must be the process's libcuda.so.1."""

    def __init__(self, library: Path, driver: Any) -> None:
        Captured.__init__(self, library)
        CudaBindings.__init__(self, driver, 0)

    def to_device(self, device: int, host: int, size: int, stream: int) -> None:
        self.put(lambda: CudaBindings.to_device(self, device, host, size, stream))

    def to_host(self, host: int, device: int, size: int, stream: int) -> None:
        self.put(lambda: CudaBindings.to_host(self, host, device, size, stream))

    def copy_rows(self, rows: RowCopy, stream: int) -> None:
        self.put(lambda: CudaBindings.copy_rows(self, rows, stream))


def array_at(address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address)).view(dtype).reshape(shape)


class _Context:
    def __init__(self, engine: _Engine) -> None:
        self._engine = engine
        self.addresses: dict[str, int] = {}

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory % 256 == 0 and size >= self._engine.device_memory_size_v2

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return name in self._engine.tensors

    def execute_async_v3(self, stream_handle: int) -> bool:
        addresses = dict(self.addresses)
        assert set(addresses) == set(self._engine.tensors), "a tensor has no address"
        self._engine.cuda.put(lambda: self._execute(addresses))
        return True

    def _execute(self, addresses: dict[str, int]) -> None:
        tensors = {
            name: array_at(addresses[name], shape, dtype) for name, (_, shape, dtype) in self._engine.tensors.items()
        }
        inputs = {name: tensors[name] for name, (mode, _, _) in self._engine.tensors.items() if mode == "INPUT"}
        names = [name for name in tensors if name not in inputs]
        for name, value in zip(names, self._engine.session.run(names, inputs)):
            tensors[name][...] = value


class EmulatedEngine:
    """What our code asks of an ICudaEngine. tensors: (INPUT or OUTPUT, shape, numpy type) by name."""

    num_aux_streams = 0
    device_memory_size_v2 = 4096
    tensors: dict[str, tuple[str, tuple[int, ...], Any]]

    @property
    def num_io_tensors(self) -> int:
        return len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> str:
        return self.tensors[name][0]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name][1]

    def get_tensor_dtype(self, name: str) -> str:
        return {np.float32: "FLOAT", np.int64: "INT64"}[self.tensors[name][2]]


class _Engine(EmulatedEngine):
    def __init__(self, cuda: Captured, data: bytes) -> None:
        self.cuda = cuda
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        kinds = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
        self.tensors = {
            node.name: (mode, tuple(node.shape), kinds[node.type])
            for mode, nodes in (("INPUT", self.session.get_inputs()), ("OUTPUT", self.session.get_outputs()))
            for node in nodes
        }

    def create_execution_context(self, strategy: str) -> _Context:
        assert strategy == "USER_MANAGED"
        return _Context(self)

    def create_engine_inspector(self) -> Any:
        layers = [
            {
                "Name": "gemm 0",
                "LayerType": "gemm",
                "Inputs": [{"Format/Datatype": "Row major linear FP32"}],
                "Outputs": [],
            }
        ]
        return types.SimpleNamespace(get_engine_information=lambda format: json.dumps({"Layers": layers}))


def onnxruntime_tensorrt(cuda: Captured) -> types.ModuleType:
    """A module `tensorrt` whose executions ONNX Runtime computes on the CPU."""
    return emulated_tensorrt(lambda data: _Engine(cuda, data))


def emulated_tensorrt(load: Callable[[bytes], EmulatedEngine]) -> types.ModuleType:
    """A module to stand in `sys.modules["tensorrt"]`. load: an engine from an engine file, which is the ONNX model."""
    module: Any = types.ModuleType("tensorrt")
    module.__spec__ = ModuleSpec("tensorrt", None)  # torch's compiler looks at it
    module.__version__ = "10.3.0"
    for name, members in {
        "DataType": ("FLOAT", "HALF", "INT8", "INT32", "INT64", "UINT8", "BOOL"),
        "TensorIOMode": ("INPUT", "OUTPUT"),
        "BuilderFlag": ("TF32",),
        "MemoryPoolType": ("WORKSPACE",),
        "ProfilingVerbosity": ("DETAILED",),
        "LayerInformationFormat": ("JSON",),
        "ExecutionContextAllocationStrategy": ("USER_MANAGED",),
    }.items():
        setattr(module, name, types.SimpleNamespace(**{member: member for member in members}))
    module.NetworkDefinitionCreationFlag = types.SimpleNamespace(STRONGLY_TYPED=1)
    module.ILogger = type("ILogger", (), {"INTERNAL_ERROR": 0, "ERROR": 1})
    module.IProgressMonitor = type("IProgressMonitor", (), {})

    class Parser:
        num_errors = 1
        num_subgraphs = 0

        def __init__(self, network: Any, logger: Any) -> None:
            self._network = network

        def parse(self, model: bytes) -> bool:
            self._network.model = model
            if len(model) > LARGE:
                return True
            onnx.checker.check_model(model)
            return not any(node.op_type == "Det" for node in onnx.load_from_string(model).graph.node)

        def get_error(self, index: int) -> Any:
            return types.SimpleNamespace(
                node_name=lambda: "the_node", node_operator=lambda: "Det", desc=lambda: "no such layer"
            )

        def supports_model_v2(self, model: bytes) -> bool:
            return False

    class Builder:
        def __init__(self, logger: Any) -> None:
            pass

        def create_network(self, flags: int) -> Any:
            assert flags == 2, "not strongly typed"
            return types.SimpleNamespace(model=b"")

        def create_builder_config(self) -> Any:
            return _Config()

        def build_serialized_network(self, network: Any, config: Any) -> bytes:
            assert config.max_aux_streams == 0 and config.cleared == ["TF32"] and config.timings is not None
            config.progress_monitor.phase_start("tactics", None, 2)
            assert config.progress_monitor.step_complete("tactics", 0)
            config.progress_monitor.phase_finish("tactics")
            return bytes(network.model)

    class Runtime:
        engine_host_code_allowed = False

        def __init__(self, logger: Any) -> None:
            pass

        def deserialize_cuda_engine(self, data: bytes) -> EmulatedEngine:
            return load(data)

    module.OnnxParser, module.Builder, module.Runtime = Parser, Builder, Runtime
    return module


class _Config:
    def __init__(self) -> None:
        self.cleared: list[str] = []
        self.timings: Any = None

    def set_memory_pool_limit(self, pool: str, size: int) -> None:
        assert pool == "WORKSPACE" and size > 0

    def clear_flag(self, flag: str) -> None:
        self.cleared.append(flag)

    def create_timing_cache(self, serialized: bytes) -> Any:
        if serialized.startswith(b"damaged"):
            return None
        return types.SimpleNamespace(serialize=lambda: serialized + b"+", serialized=serialized)

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        self.timings = None if cache.serialized.startswith(b"foreign") else cache
        return self.timings is not None

    def get_timing_cache(self) -> Any:
        return self.timings
