# SPDX-License-Identifier: Apache-2.0
"""Attention's own products (queries with keys, weights with values) in INT8, where both sides are activations.

They are worth it only where they are a large part of a graph: in the vision
tower, with its 1024 rows, a third of the time. Softmax itself stays in float;
its result is quantised over the range it really has, not over 0..1, or most
weights of 1024 keys would round to nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from vla_edge.calibration.precision.int8 import Span, activation_grid
from vla_edge.calibration.precision.linear import TensorSink, shapes_of, with_nodes

WORTH = 0.05
"""Share of a graph's multiply-adds from which its attention products are a group of the plan."""


@dataclass(frozen=True, slots=True)
class Product:
    """One product of two activations, `left` [heads, rows, inner] · `right` [heads, inner, columns]."""

    node: str
    left: str
    right: str
    multiply_adds: int
    group: str


def products(model: onnx.ModelProto) -> list[Product]:
    """Attention's products in graph order, empty when they are not worth it."""
    shapes = shapes_of(model)
    weights = {item.name for item in model.graph.initializer}
    found, total = [], 0
    for node in model.graph.node:
        if node.op_type != "MatMul":
            continue
        work = int(np.prod(shapes[node.output[0]], dtype=np.int64)) * shapes[node.input[0]][-1]
        total += work
        if node.input[0] not in weights and node.input[1] not in weights and len(shapes[node.input[0]]) == 3:
            found.append(
                Product(node.name, node.input[0], node.input[1], work, f"{model.graph.name}/attention/products")
            )
    return found if sum(item.multiply_adds for item in found) >= WORTH * total else []


def quantise_products(
    model: onnx.ModelProto, spans: Mapping[str, tuple[Span, Span]], sink: TensorSink
) -> onnx.ModelProto:
    """A model in which both sides of each product named in `spans` go through QuantizeLinear and DequantizeLinear.

    The left side of a softmax is unsigned, everything else signed and symmetric, as integer kernels take them.
    """
    nodes: list[onnx.NodeProto] = []
    tensors: dict[str, onnx.TensorProto] = {}
    for node in model.graph.node:
        if node.name in spans:
            sides = [_quantised(name, span, nodes, tensors, sink) for name, span in zip(node.input, spans[node.name])]
            nodes.append(helper.make_node("MatMul", sides, node.output, node.name))
        else:
            nodes.append(node)
    return with_nodes(model, nodes, tensors.values())


def _quantised(
    value: str, span: Span, nodes: list[onnx.NodeProto], tensors: dict[str, onnx.TensorProto], sink: TensorSink
) -> str:
    back = f"{value}/product/dq"
    if f"{value}/product/scale" not in tensors:
        grid: Iterator[tuple[str, NDArray[Any]]] = zip(("scale", "zero"), activation_grid(span, signed=span.low < 0))
        names = []
        for part, array in grid:
            name = f"{value}/product/{part}"
            tensors[name] = sink.tensor(name, array)
            names.append(name)
        nodes.append(helper.make_node("QuantizeLinear", [value, *names], [f"{value}/product/q"], f"{value}/product/q"))
        nodes.append(helper.make_node("DequantizeLinear", [f"{value}/product/q", *names], [back], back))
    return back
