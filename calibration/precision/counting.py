# SPDX-License-Identifier: Apache-2.0
"""Multiply-adds and bytes of a graph, counted from its nodes: the work a measured time is compared with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from vla_edge.calibration.precision.linear import Shapes, shapes_of

PRODUCTS = ("MatMul", "MatMulInteger", "Gemm", "Conv")


@dataclass(frozen=True, slots=True)
class Work:
    """multiply_adds: of all matrix products. weight_bytes: constants a run reads once. activation_bytes: every value
    written and read once, as if nothing stayed in a cache."""

    multiply_adds: int
    weight_bytes: int
    activation_bytes: int


def work_of(model: onnx.ModelProto) -> Work:
    """Of a graph of standard operators with static shapes."""
    shapes = shapes_of(model)
    used = {name for node in model.graph.node for name in node.input}
    weights = sum(_bytes(item.data_type, tuple(item.dims)) for item in model.graph.initializer if item.name in used)
    types = _types(model)
    values = {name for node in model.graph.node if node.op_type not in ("Reshape", "Identity") for name in node.output}
    activations = sum(2 * _bytes(types[name], shapes[name]) for name in values if name in types)
    return Work(sum(multiply_adds(node, shapes) for node in model.graph.node), weights, activations)


def multiply_adds(node: onnx.NodeProto, shapes: Shapes) -> int:
    """Of one node; 0 for anything that is no matrix product or convolution."""
    if node.op_type not in PRODUCTS:
        return 0
    if node.op_type == "Conv":
        return int(np.prod(shapes[node.output[0]], dtype=np.int64)) * int(np.prod(shapes[node.input[1]][1:]))
    return int(np.prod(shapes[node.output[0]], dtype=np.int64)) * shapes[node.input[0]][-1]


def _types(model: onnx.ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    return {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}


def _bytes(kind: int, shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64)) * onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize
