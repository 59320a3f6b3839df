# SPDX-License-Identifier: Apache-2.0
"""torch's kernels in TensorRT's place: a module `tensorrt` that runs each ONNX node with torch on the given stream.

On a real GPU everything else is real: addresses, sides, capture, streams, events, copies, priorities and lifetimes.
An "engine file" is the ONNX model. Every execution context has a memory pool of its own for what lies between nodes,
filled in the run before a capture, so that a captured graph's addresses stay its own. With device "cpu" the same
arithmetic runs on an `EmulatedCuda`.

As a pytest plugin (-p tests.engines.torch_kernels) it installs itself on the GPU where TensorRT is not there.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as functional
from onnx import TensorProto, helper, numpy_helper
from tests.engines.emulated_gpu import EmulatedEngine, array_at, emulated_tensorrt
from torch import Tensor

TYPES = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.INT8: torch.int8,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.BOOL: torch.bool,
}


def _axes(node: _Node, index: int) -> tuple[int, ...]:
    return tuple(int(axis) for axis in node.host(index).ravel())


def _reduced(kind: str) -> Callable[[_Node, Sequence[Tensor]], Tensor]:
    def run(node: _Node, x: Sequence[Tensor]) -> Tensor:
        made: Tensor = getattr(x[0], kind)(_axes(node, 1), keepdim=bool(node.attributes.get("keepdims", 1)))
        return made

    return run


def _power(node: _Node, x: Sequence[Tensor]) -> Tensor:
    return x[0] * x[0] if node.host(1).size == 1 and float(node.host(1).ravel()[0]) == 2 else torch.pow(x[0], x[1])


def _slice(node: _Node, x: Sequence[Tensor]) -> Tensor:
    (start,), (end,), (axis,) = (_axes(node, index) for index in (1, 2, 3))
    size = x[0].shape[axis]
    start, end = (min(place + size if place < 0 else place, size) for place in (start, end))
    return x[0].narrow(axis, start, end - start)


def _gather(node: _Node, x: Sequence[Tensor]) -> Tensor:
    axis = node.attributes.get("axis", 0)
    shape = (*x[0].shape[:axis], *x[1].shape, *x[0].shape[axis + 1 :])
    return torch.index_select(x[0], axis, x[1].reshape(-1)).reshape(shape)


def _per_axis(node: _Node, x: Sequence[Tensor]) -> Tensor:
    if x[1].ndim == 0:
        return x[1]
    axis = node.attributes.get("axis", 1) % x[0].ndim
    return x[1].reshape([-1 if index == axis else 1 for index in range(x[0].ndim)])


OPERATORS: dict[str, Callable[[_Node, Sequence[Tensor]], Tensor | Sequence[Tensor]]] = {
    "MatMul": lambda node, x: torch.matmul(x[0], x[1]),
    "Add": lambda node, x: x[0] + x[1],
    "Sub": lambda node, x: x[0] - x[1],
    "Mul": lambda node, x: x[0] * x[1],
    "Div": lambda node, x: x[0] / x[1],
    "Pow": _power,
    "Sqrt": lambda node, x: torch.sqrt(x[0]),
    "Max": lambda node, x: torch.maximum(x[0], x[1]),
    "Relu": lambda node, x: torch.relu(x[0]),
    "Sigmoid": lambda node, x: torch.sigmoid(x[0]),
    "Sin": lambda node, x: torch.sin(x[0]),
    "Cos": lambda node, x: torch.cos(x[0]),
    "Identity": lambda node, x: x[0],
    "Cast": lambda node, x: x[0].to(TYPES[node.attributes["to"]]),
    "Gelu": lambda node, x: functional.gelu(x[0], approximate=node.attributes.get("approximate", b"none").decode()),
    "Softmax": lambda node, x: torch.softmax(x[0], node.attributes.get("axis", -1)),
    "LayerNormalization": lambda node, x: functional.layer_norm(
        x[0], x[0].shape[-1:], x[1], x[2], node.attributes.get("epsilon", 1e-5)
    ),
    "ReduceMean": _reduced("mean"),
    "ReduceSum": _reduced("sum"),
    "Reshape": lambda node, x: x[0].reshape(_axes(node, 1)),
    "Transpose": lambda node, x: x[0].permute(*node.attributes["perm"]),
    "Concat": lambda node, x: torch.cat(list(x), node.attributes["axis"]),
    "Split": lambda node, x: torch.split(x[0], list(_axes(node, 1)), node.attributes.get("axis", 0)),
    "Gather": _gather,
    "Slice": _slice,
    "QuantizeLinear": lambda node, x: torch.clamp(torch.round(x[0] / _per_axis(node, x)), -128, 127).to(torch.int8),
    "DequantizeLinear": lambda node, x: x[0].to(x[1].dtype) * _per_axis(node, x),
}


class _Node:
    """One ONNX node: operator, names, attributes, and its inputs that are known on the host."""

    def __init__(self, node: onnx.NodeProto, host: dict[str, np.ndarray]) -> None:
        self.run = OPERATORS[node.op_type]
        self.kind = node.op_type
        self.inputs, self.outputs = list(node.input), list(node.output)
        self.attributes: dict[str, Any] = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        self._host = host

    def host(self, index: int) -> np.ndarray:
        return self._host[self.inputs[index]]

    def values(self, known: dict[str, Tensor]) -> dict[str, Tensor]:
        made = self.run(self, [known[name] for name in self.inputs if name])
        return dict(zip(self.outputs, [made] if isinstance(made, Tensor) else made))


class TorchEngine(EmulatedEngine):
    """An ONNX graph as a list of torch calls; what depends on weights alone is computed when it is loaded."""

    def __init__(self, data: bytes, device: str, put: Callable[[Callable[[], object]], None]) -> None:
        graph = onnx.load_from_string(data).graph
        self.device, self.put = device, put
        host = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
        self.constants = {name: torch.from_numpy(np.array(array)).to(device) for name, array in host.items()}
        self.nodes: list[_Node] = []
        with torch.inference_mode():
            for node in (_Node(item, host) for item in graph.node):
                if all(name in self.constants for name in node.inputs if name):
                    self.constants |= node.values(self.constants)
                else:
                    self.nodes.append(node)
        used = {name for node in self.nodes for name in node.inputs}
        self.constants = {name: tensor for name, tensor in self.constants.items() if name in used}
        self.tensors = {
            value.name: (
                mode,
                tuple(size.dim_value for size in value.type.tensor_type.shape.dim),
                helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).type,
            )
            for mode, values in (("INPUT", graph.input), ("OUTPUT", graph.output))
            for value in values
        }
        if device == "cuda":
            torch.cuda.synchronize()

    def create_execution_context(self, strategy: str) -> TorchContext:
        assert strategy == "USER_MANAGED"
        return TorchContext(self)

    def create_engine_inspector(self) -> Any:
        quantised = {name for node in self.nodes if node.kind == "DequantizeLinear" for name in node.outputs}
        layers = [
            {
                "Name": node.outputs[0],
                "LayerType": "gemm",
                "Inputs": [{"Format/Datatype": "INT8" if quantised & set(node.inputs) else "FP32"}],
                "Outputs": [],
            }
            for node in self.nodes
            if node.kind == "MatMul"
        ]
        return types.SimpleNamespace(get_engine_information=lambda format: json.dumps({"Layers": layers}))

    def run(self, given: dict[str, Tensor]) -> None:
        """given: inputs and outputs by name; outputs are written in place."""
        known = {
            **self.constants,
            **{name: given[name] for name, (mode, *_) in self.tensors.items() if mode == "INPUT"},
        }
        for node in self.nodes:
            made = node.values(known)
            known |= made
            for name in made.keys() & given.keys():
                given[name].copy_(made[name])


class TorchContext:
    """Addresses of one run, and on a GPU the memory between its nodes."""

    def __init__(self, engine: TorchEngine) -> None:
        self._engine = engine
        self.addresses: dict[str, int] = {}
        self._views: dict[tuple[str, int], Tensor] = {}
        self._pool = torch.cuda.MemPool() if engine.device == "cuda" else None

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory % 256 == 0 and size >= self._engine.device_memory_size_v2

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return name in self._engine.tensors

    def execute_async_v3(self, stream_handle: int) -> bool:
        engine = self._engine
        assert set(self.addresses) == set(engine.tensors), "a tensor has no address"
        # Made once an address, in the run before a capture: nothing but kernels is put on a capturing stream.
        given = {name: self._view(name) for name in engine.tensors}
        if self._pool is None:
            engine.put(lambda: self._run(given))
            return True
        stream = torch.cuda.ExternalStream(stream_handle)
        with torch.cuda.stream(stream):
            _warm_up(stream_handle)
            with torch.cuda.use_mem_pool(self._pool):
                self._run(given)
        return True

    @torch.inference_mode()
    def _run(self, given: dict[str, Tensor]) -> None:
        self._engine.run(given)

    def _view(self, name: str) -> Tensor:
        address = self.addresses[name]
        if (name, address) not in self._views:
            _, shape, kind = self._engine.tensors[name]
            self._views[name, address] = (
                torch.as_tensor(_DeviceArray(address, shape, np.dtype(kind)), device="cuda")
                if self._pool is not None
                else torch.from_numpy(array_at(address, shape, kind))
            )
            assert self._views[name, address].data_ptr() == address, "torch made a copy"
        return self._views[name, address]


class _DeviceArray:
    """Device memory as torch takes it."""

    def __init__(self, address: int, shape: tuple[int, ...], kind: np.dtype[Any]) -> None:
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": kind.str,
            "data": (address, False),
            "version": 3,
            "strides": None,
        }


_warmed: set[int] = set()


def _warm_up(stream: int) -> None:
    """cuBLAS's own workspace for the current stream, from torch's general memory and not from one context's pool."""
    if stream in _warmed:
        return
    for dtype in (torch.float32, torch.float16):
        square = torch.ones(64, 64, device="cuda", dtype=dtype)
        torch.matmul(square, square)
        torch.matmul(square[None].expand(2, -1, -1), square[None].expand(2, -1, -1))
    torch.cuda.current_stream().synchronize()
    _warmed.add(stream)


def torch_tensorrt(device: str = "cuda", put: Callable[[Callable[[], object]], None] | None = None) -> types.ModuleType:
    """A module to stand in `sys.modules["tensorrt"]`. put: where work goes on a CPU."""
    return emulated_tensorrt(lambda data: TorchEngine(data, device, put or _at_once))


def _at_once(work: Callable[[], object]) -> None:
    work()


def pytest_configure() -> None:
    if importlib.util.find_spec("tensorrt") is None and torch.cuda.is_available():
        sys.modules["tensorrt"] = torch_tensorrt()
