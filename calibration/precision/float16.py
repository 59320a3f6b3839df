"""Half precision with islands of float32: softmax, norms, RoPE, masks and the Euler step stay in float32.

Only matrix products are done in half precision: their inputs are cast, their
results cast back, and weights are stored in half. What lies between them keeps
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

from vla_edge.calibration.precision.linear import KEPT_FLOAT, TensorSink
from vla_edge.errors import ExportError

LARGEST = float(np.finfo(np.float16).max)


def to_float16(model: onnx.ModelProto, arrays: Mapping[str, NDArray[Any]], sink: TensorSink) -> onnx.ModelProto:
    """Every MatMul but the kept ones in half precision. ExportError: a weight does not fit into its range."""
    constants = {item.name: item for item in model.graph.initializer}
    cast: dict[str, str] = {}
    nodes: list[onnx.NodeProto] = []
    halved: dict[str, TensorProto] = {}
    for node in model.graph.node:
        if node.op_type != "MatMul" or node.name.startswith(KEPT_FLOAT):
            nodes.append(node)
            continue
        sides = []
        for name in node.input:
            if name in constants:
                sides.append(_half_constant(name, arrays, halved, sink))
                continue
            if name not in cast:
                cast[name] = f"{name}/half"
                nodes.append(helper.make_node("Cast", [name], [cast[name]], cast[name], to=TensorProto.FLOAT16))
            sides.append(cast[name])
        product = f"{node.output[0]}/half_product"
        nodes.append(helper.make_node("MatMul", sides, [product], node.name))
        nodes.append(helper.make_node("Cast", [product], node.output, f"{node.name}/single", to=TensorProto.FLOAT))
    used = {name for node in nodes for name in node.input}
    kept = [item for name, item in constants.items() if name in used]
    graph = helper.make_graph(nodes, model.graph.name, model.graph.input, model.graph.output, [*kept, *halved.values()])
    return helper.make_model(
        graph, opset_imports=model.opset_import, ir_version=model.ir_version, producer_name="vla-edge"
    )


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
