# SPDX-License-Identifier: Apache-2.0
"""The linear maps of a graph: MatMul nodes whose right side is a weight of the policy."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from vla_edge.bundle import GraphFile
from vla_edge.engines.onnx_file import external_array, external_tensors

Shapes = Mapping[str, tuple[int, ...]]

KEPT_FLOAT = ("embed/", "action_out", "state/", "state_proj", "cls/", "pooled")
"""Beginnings of node names that stay in float: action and state projections and the gate's features. They are less
than 1 % of the arithmetic and stand where an error goes straight into the actions or the cache's decision."""


class TensorSink(Protocol):
    """Stores a tensor and returns the initializer that points to it."""

    def tensor(self, name: str, array: NDArray[Any]) -> TensorProto: ...


@dataclass(frozen=True, slots=True)
class LinearMap:
    """One linear map: `value` [rows, inner] · weight [inner, outer]. group: graph and kind of map, the same for all
    layers (`vision/mlp/down`); the precision plan decides by groups."""

    node: str
    value: str
    weight: str
    output: str
    rows: int
    inner: int
    outer: int
    group: str

    @property
    def multiply_adds(self) -> int:
        return self.rows * self.inner * self.outer


def shapes_of(model: onnx.ModelProto) -> Shapes:
    """Static shape of every value of a graph of standard operators."""
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {item.name: tuple(item.dims) for item in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        shapes[value.name] = tuple(size.dim_value for size in value.type.tensor_type.shape.dim)
    return shapes


def readers_of(model: onnx.ModelProto) -> dict[str, list[onnx.NodeProto]]:
    """The nodes that read each value."""
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            found.setdefault(name, []).append(node)
    return found


def with_nodes(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], new: Iterable[TensorProto]) -> onnx.ModelProto:
    """`model` with these nodes in place of its own; of its initializers those that they read, and the `new` ones."""
    used = {name for node in nodes for name in node.input}
    kept = [item for item in model.graph.initializer if item.name in used]
    graph = helper.make_graph(nodes, model.graph.name, model.graph.input, model.graph.output, [*kept, *new])
    return helper.make_model(
        graph, opset_imports=model.opset_import, ir_version=model.ir_version, producer_name="vla-edge"
    )


def external_tensor(name: str, array: NDArray[Any], file: str, offset: int) -> TensorProto:
    """An initializer whose bytes lie in `file` from `offset` on."""
    proto = TensorProto(name=name, dims=array.shape, data_type=helper.np_dtype_to_tensor_dtype(array.dtype))
    proto.data_location = TensorProto.EXTERNAL
    for key, value in (("location", file), ("offset", str(offset)), ("length", str(array.nbytes))):
        proto.external_data.add(key=key, value=value)
    return proto


def linear_maps(model: onnx.ModelProto) -> Iterator[LinearMap]:
    """Every linear map that a plan may change, in graph order."""
    shapes = shapes_of(model)
    weights = {item.name for item in model.graph.initializer if len(item.dims) == 2}
    for node in model.graph.node:
        if node.op_type != "MatMul" or node.input[1] not in weights or node.name.startswith(KEPT_FLOAT):
            continue
        rows = int(np.prod(shapes[node.input[0]][:-1], dtype=np.int64))
        inner, outer = shapes[node.input[1]]
        group = f"{model.graph.name}/{_kind(node.name)}"
        yield LinearMap(node.name, node.input[0], node.input[1], node.output[0], rows, inner, outer, group)


def _kind(name: str) -> str:
    """`layer07/mlp/down` → `mlp/down`: what the map is, whichever layer it stands in."""
    return re.sub(
        r"^(layer|expert|delta)\d+/",
        lambda found: "" if found[1] == "layer" else f"{found[1]}/",
        re.sub(r"\.\d+$", "", name),
    )


def weight_arrays(graph: GraphFile, model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    """Every initializer by name; those in external files are read-only views of the verified bytes."""
    arrays = {
        tensor.name: external_array(tensor, graph.weights[tensor.file]) for tensor in external_tensors(graph.model)
    }
    for item in model.graph.initializer:
        if item.name not in arrays:
            arrays[item.name] = onnx.numpy_helper.to_array(item)
    return arrays
