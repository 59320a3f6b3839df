# SPDX-License-Identifier: Apache-2.0
"""What TensorRT's ONNX parser (10.3 to 11) cannot take, found without TensorRT: operators, types, zero-points.

Static shapes and control flow are `lint.py`'s business and are looked at again
here, because a bundle may come from elsewhere. Source of the operator list: the
parser's own operators.md; it is a list of what was read there, not of what was
run.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from vla_edge.bundle import Bundle, GraphFile
from vla_edge.engines.onnx_file import with_inline_tensors
from vla_edge.errors import ExportError

NEWEST_OPSET = 20
"""of the ONNX operators that the parser of 10.3 reads"""
_OPERATORS = """
    Abs Add And Cast Ceil Clip Concat Constant ConstantOfShape Conv Cos DequantizeLinear Div Einsum Equal Erf Exp
    Expand Flatten Floor Gather Gelu Gemm Greater GreaterOrEqual Identity LayerNormalization Less LessOrEqual Log
    MatMul Max MaxPool Min Mul Neg Not Or Pad Pow QuantizeLinear Reciprocal ReduceMax ReduceMean ReduceMin ReduceSum
    Relu Reshape Sigmoid Sin Slice Softmax Split Sqrt Squeeze Sub Sum Tanh Tile Transpose Unsqueeze Where
"""
OPERATORS = frozenset(_OPERATORS.split())
TYPES = frozenset(
    {
        *(TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.INT8, TensorProto.UINT8),
        *(TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL),
    }
)


def lint_bundle(bundle: Bundle) -> None:
    """ExportError names the first graph and node that TensorRT would refuse, and how many more there are."""
    for name in bundle.manifest.graphs:
        findings = list(find(bundle.graph(name)))
        if findings:
            more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
            raise ExportError(f"{bundle.path}: graph {name}: {findings[0]}{more}; export it with --backend tensorrt")


def find(graph: GraphFile) -> Iterator[str]:
    """Every offence in one graph, in words."""
    model = onnx.load_from_string(with_inline_tensors(graph.model, graph.weights))
    for opset in model.opset_import:
        if opset.domain not in ("", "ai.onnx"):
            yield f"operator domain {opset.domain} is not ONNX's"
        elif opset.version > NEWEST_OPSET:
            yield f"opset is {opset.version}, at most {NEWEST_OPSET} is read by TensorRT 10.3"
    for value in (*model.graph.input, *model.graph.output):
        sizes = value.type.tensor_type.shape.dim
        if any(not size.HasField("dim_value") or size.dim_value < 1 for size in sizes):
            yield f"tensor {value.name} has no static shape"
    constants = {item.name: item for item in model.graph.initializer}
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type not in TYPES:
            yield f"tensor {value.name} has type {TensorProto.DataType.Name(value.type.tensor_type.elem_type)}"
    for item in constants.values():
        if item.data_type not in TYPES:
            yield f"initialiser {item.name} has type {TensorProto.DataType.Name(item.data_type)}"
    for node in model.graph.node:
        if node.op_type not in OPERATORS:
            yield f"node {node.name}: TensorRT has no {node.op_type}"
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            yield from _quantisation(node, constants)


def _quantisation(node: onnx.NodeProto, constants: dict[str, TensorProto]) -> Iterator[str]:
    """Signed, symmetric, with constant positive scales: what explicit quantisation means to TensorRT."""
    scale = constants.get(node.input[1])
    if scale is None:
        yield f"node {node.name}: its scale is computed, TensorRT wants a constant"
    elif not (np.isfinite(values := numpy_helper.to_array(scale)).all() and (values > 0).all()):
        yield f"node {node.name}: its scale is not positive everywhere"
    if len(node.input) < 3 or not node.input[2]:
        if node.op_type == "QuantizeLinear":
            yield f"node {node.name}: no zero-point, so it quantises to UINT8; TensorRT wants INT8"
        return
    zero = constants.get(node.input[2])
    if zero is None:
        yield f"node {node.name}: its zero-point is computed, TensorRT wants a constant"
    elif zero.data_type != TensorProto.INT8:
        yield f"node {node.name}: its zero-point is {TensorProto.DataType.Name(zero.data_type)}, TensorRT wants INT8"
    elif numpy_helper.to_array(zero).any():
        yield f"node {node.name}: its zero-point is not 0, TensorRT quantises symmetrically only"
