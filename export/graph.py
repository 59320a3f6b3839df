# SPDX-License-Identifier: Apache-2.0
"""Writes an ONNX graph node by node, under names that say where in the policy a node stands.

Graphs are built from the policy's weights instead of being traced: every
operator, name and layout is chosen here, a full-size policy takes seconds, and
a later pass finds a matrix by its name (`layer03/mlp/gate_up`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from vla_edge.bundle import TensorSpec
from vla_edge.errors import ExportError
from vla_edge.export.weights import WeightFile

OPSET = 20
"""The first with Gelu(tanh); all the backends that are supported read it."""

IR_VERSION = 9
"""The file format that came with opset 20."""


class Graph:
    """One graph under construction. Values are their names; shapes are static and batch is 1."""

    def __init__(self, name: str, weights: WeightFile) -> None:
        self.name = name
        self.inputs: list[TensorSpec] = []
        self.outputs: list[TensorSpec] = []
        self._weights = weights
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, TensorProto] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._scope: tuple[str, ...] = ()
        self._used: set[str] = set()

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Nodes made inside are named `name/…`."""
        outer = self._scope
        self._scope = (*outer, name)
        try:
            yield
        finally:
            self._scope = outer

    def input(self, name: str, shape: Sequence[int], dtype: str = "float32") -> str:
        """Declare a graph input."""
        self.inputs.append(TensorSpec(name, tuple(shape), dtype))
        self._used.add(name)
        return name

    def output(self, value: str, name: str, shape: Sequence[int]) -> None:
        """Make `value` the float32 graph output `name`."""
        self._nodes.append(helper.make_node("Identity", [value], [name], f"output/{name}"))
        self.outputs.append(TensorSpec(name, tuple(shape), "float32"))

    def op(self, kind: str, *inputs: str, name: str, **attributes: Any) -> str:
        """Add a node with one output and return that output."""
        return self.ops(kind, *inputs, name=name, outputs=1, **attributes)[0]

    def ops(self, kind: str, *inputs: str, name: str, outputs: int, **attributes: Any) -> list[str]:
        """Add a node and return its outputs; the first has the node's name."""
        path = self._unique("/".join((*self._scope, name)))
        values = [path, *(f"{path}:{index}" for index in range(1, outputs))]
        self._nodes.append(helper.make_node(kind, list(inputs), values, path, **attributes))
        return values

    def weight(self, array: NDArray[np.floating[Any]], name: str) -> str:
        """A float32 tensor of the policy, named `scope/name`. ExportError when it holds NaN or infinity."""
        path = self._unique("/".join((*self._scope, name)))
        values = np.asarray(array, np.float32)
        if not np.isfinite(values).all():
            raise ExportError(
                f"graph {self.name}: weight {path} holds a value that is not finite; the checkpoint is damaged or "
                "its training diverged"
            )
        self._initializers[path] = self._weights.tensor(path, values)
        return path

    def constant(self, value: Any, dtype: str = "float32") -> str:
        """A tensor that is part of the arithmetic, equal ones stored once. int64 only as an operator's shape, axes or
        index."""
        array = np.ascontiguousarray(value, dtype)
        key = (dtype, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"constant/{len(self._constants)}"
            self._initializers[name] = self._weights.tensor(name, array)
            self._constants[key] = name
        return self._constants[key]

    def reshape(self, value: str, shape: Sequence[int], name: str = "reshape") -> str:
        """`value` seen as `shape`."""
        return self.op("Reshape", value, self.constant(list(shape), "int64"), name=name)

    def split(self, value: str, sizes: Sequence[int], axis: int, name: str = "split") -> list[str]:
        """`value` cut along `axis` into parts of `sizes`."""
        return self.ops("Split", value, self.constant(list(sizes), "int64"), name=name, outputs=len(sizes), axis=axis)

    def slice(self, value: str, axis: int, start: int, end: int, name: str) -> str:
        """Rows `start` to `end` of `value` along `axis`."""
        start_end_axis = (self.constant([number], "int64") for number in (start, end, axis))
        return self.op("Slice", value, *start_end_axis, name=name)

    def model(self) -> onnx.ModelProto:
        """The finished graph."""
        graph = helper.make_graph(
            self._nodes,
            self.name,
            [_value_info(spec) for spec in self.inputs],
            [_value_info(spec) for spec in self.outputs],
            list(self._initializers.values()),
        )
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="vla-edge"
        )

    def _unique(self, path: str) -> str:
        candidate, count = path, 1
        while candidate in self._used:
            count += 1
            candidate = f"{path}.{count}"
        self._used.add(candidate)
        return candidate


def _value_info(spec: TensorSpec) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(spec.name, helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype)), spec.shape)
