# SPDX-License-Identifier: Apache-2.0
"""Half precision with islands of float32: softmax, norms, RoPE, masks and the Euler step stay in float32.

Only matrix products and convolutions are done in half precision: their inputs are cast, their
results cast back, and weights and the table of token embeddings are stored in
half. Around INT8 (scales in half already, int8.py) it is the same, so that
attention between quantised maps is one TensorRT fuses. What lies between keeps
float32's range, so nothing overflows that did not before. A GPU runs such a
graph's products on its half-precision units; ONNX Runtime's CPU provider has
none and computes them in float32 again (the audit says so).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from vla_edge.calibration.precision.linear import KEPT_FLOAT, TensorSink, with_nodes
from vla_edge.errors import ExportError

LARGEST = float(np.finfo(np.float16).max)


def to_float16(model: onnx.ModelProto, arrays: Mapping[str, NDArray[Any]], sink: TensorSink) -> onnx.ModelProto:
    """Every MatMul but the kept ones in half precision, and what QuantizeLinear reads. ExportError: a weight does not
    fit into its range."""
    constants = {item.name: item for item in model.graph.initializer}
    cast: dict[str, str] = {}
    nodes: list[onnx.NodeProto] = []
    halved: dict[str, TensorProto] = {}

    def half(name: str) -> str:
        if name in constants:
            return _half_constant(name, arrays, halved, sink)
        if name not in cast:
            cast[name] = f"{name}/half"
            nodes.append(helper.make_node("Cast", [name], [cast[name]], cast[name], to=TensorProto.FLOAT16))
        return cast[name]

    for node in model.graph.node:
        table = node.op_type == "Gather" and node.input[0] in constants
        if node.op_type == "QuantizeLinear":
            quantise = onnx.NodeProto()
            quantise.CopyFrom(node)
            quantise.input[0] = half(node.input[0])
            nodes.append(quantise)
        elif table or (node.op_type in ("MatMul", "Conv") and not node.name.startswith(KEPT_FLOAT)):
            made = onnx.NodeProto()
            made.CopyFrom(node)
            made.input[:] = [half(node.input[0]), *(node.input[1:] if table else map(half, node.input[1:]))]
            made.output[:] = [f"{node.output[0]}/half_product"]
            back = helper.make_node("Cast", made.output, node.output, f"{node.name}/single", to=TensorProto.FLOAT)
            nodes += [made, back]
        else:
            nodes.append(node)
            if node.op_type == "DequantizeLinear":
                cast[node.output[0]] = node.output[0]
    return with_nodes(model, nodes, halved.values())


def _half_constant(
    name: str, arrays: Mapping[str, NDArray[Any]], halved: dict[str, TensorProto], sink: TensorSink
) -> str:
    half = f"{name}/half"
    if half not in halved:
        largest = float(np.abs(arrays[name]).max())
        if largest > LARGEST:
            raise ExportError(
                f"weight {name} reaches {largest:.3g}, float16 holds at most {LARGEST:g}; choose --precision fp32 or "
                "int8"
            )
        halved[half] = sink.tensor(half, np.asarray(arrays[name], np.float16))
    return half
