# SPDX-License-Identifier: Apache-2.0
"""What an exported graph may not contain, so that every backend can run it at a fixed cost."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper

from vla_edge.errors import ExportError
from vla_edge.export.graph import OPSET

_REFUSED = {
    *("If", "Loop", "Scan", "NonZero", "Unique", "NonMaxSuppression", "Multinomial", "Bernoulli", "Dropout"),
    *("SequenceMap", "Shape", "Size"),
}
"""Data-dependent control flow, sizes or chance. Names that begin with Random are refused too."""

_INDEX_INPUTS = {
    "Expand": (1,),
    "Gather": (1,),
    "Pad": (1, 3),
    "ReduceMax": (1,),
    "ReduceMean": (1,),
    "ReduceSum": (1,),
    "Reshape": (1,),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "Unsqueeze": (1,),
}
"""The inputs that are shapes, axes or indices: the only place for int64."""

_TYPES = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT8, TensorProto.UINT8, TensorProto.INT32}


def lint(model: onnx.ModelProto) -> None:
    """Refuse a graph that is not static, float32-clean and deterministic. ExportError names the node or tensor."""
    findings = list(find(model))
    if findings:
        more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
        raise ExportError(f"graph {model.graph.name}: {findings[0]}{more}; this is a fault of the exporter")


def find(model: onnx.ModelProto) -> Iterator[str]:
    """Every offence in `model`, in words."""
    for opset in model.opset_import:
        if opset.domain not in ("", "ai.onnx"):
            yield f"operator domain {opset.domain} is not part of ONNX itself"
        elif opset.version > OPSET:
            yield f"opset is {opset.version}, at most {OPSET} is read everywhere"
    for node in model.graph.node:
        if node.op_type in _REFUSED or node.op_type.startswith("Random"):
            yield f"node {node.name} is {node.op_type}"
        for attribute in node.attribute:
            if attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
                yield f"node {node.name} holds a graph of its own"
    names = [node.name for node in model.graph.node]
    if len(set(names)) != len(names) or not all(names):
        yield "node names are missing or not unique"
    read = {name for node in model.graph.node for name in node.input}
    for item in model.graph.initializer:
        if item.name not in read:  # ONNX Runtime drops it, and then refuses to be given its data
            yield f"tensor {item.name} is read by no node"
    yield from _types_and_shapes(model)


def _types_and_shapes(model: onnx.ModelProto) -> Iterator[str]:
    try:
        graph = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    except onnx.shape_inference.InferenceError as error:
        yield f"shapes cannot be inferred: {error}"
        return
    known: dict[str, int] = {item.name: item.data_type for item in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        known[value.name] = tensor.elem_type
        if not tensor.HasField("shape") or any(
            not size.HasField("dim_value") or size.dim_value < 1 for size in tensor.shape.dim
        ):
            yield f"tensor {value.name} has no static shape"
    integers = {value.name for value in graph.input if value.type.tensor_type.elem_type == TensorProto.INT64}
    integers |= {item.name for item in graph.initializer if item.data_type == TensorProto.INT64}
    for name, kind in known.items():
        if kind not in _TYPES and name not in integers:
            yield f"tensor {name} has type {helper.tensor_dtype_to_np_dtype(kind) if kind else 'unknown'}"
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name in integers and index not in _INDEX_INPUTS.get(node.op_type, ()):
                yield f"node {node.name} ({node.op_type}) computes with int64 tensor {name}"
        for name in node.output:
            if name not in known:
                yield f"tensor {name} has a shape that cannot be inferred"
    for item in graph.initializer:
        inline = item.data_location != TensorProto.EXTERNAL and item.data_type in (
            TensorProto.FLOAT,
            TensorProto.FLOAT16,
        )
        if inline and not np.isfinite(onnx.numpy_helper.to_array(item)).all():
            yield f"tensor {item.name} holds a value that is not finite"
