# SPDX-License-Identifier: Apache-2.0
"""What really runs: share of multiply-adds per number type, from the backend's own graph after its optimisation.

A linear map counts as INT8 when the operator that reads its 8-bit weights
computes with integers; whatever became of it otherwise is named as fallen back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import onnx

from vla_edge.bundle import GraphFile
from vla_edge.calibration.precision.convolution import Convolution, convolutions
from vla_edge.calibration.precision.counting import work_of
from vla_edge.calibration.precision.linear import LinearMap, linear_maps, readers_of
from vla_edge.calibration.precision.products import products
from vla_edge.calibration.precision.variant import FLOAT32, Plan
from vla_edge.engines.dialect import Treatment
from vla_edge.engines.openvino import ExecutedLayer
from vla_edge.engines.ort import optimized_model

INTEGER_OPERATORS = {
    *("MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QLinearMatMul", "QGemm"),
    *("QLinearConv", "ConvInteger"),
}
"""ONNX Runtime's operators that multiply 8-bit integers."""


@dataclass(frozen=True)
class GraphAudit:
    """share: of the graph's multiply-adds by type ("int8", "int8 weights", "fp16", "fp32"), adding to 1. fell_back:
    nodes that were asked for less than float32 and run in it. kernels: how many layers run in which kernel."""

    graph: str
    share: Mapping[str, float]
    fell_back: tuple[str, ...]
    kernels: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = sorted(self.share.items(), key=lambda item: -item[1])
        return ", ".join(f"{name} {100 * share:.1f} %" for name, share in parts if share > 0)


@dataclass(frozen=True)
class _Asked:
    """One product that a plan changes: its node, the value it reads, the work, the treatment, and the name of its
    stored
    weight ("" where both sides are activations)."""

    node: str
    value: str
    work: int
    treatment: Treatment
    weight: str


def audit_ort(source: GraphFile, variant: GraphFile, plan: Plan) -> GraphAudit:
    """`variant` is what `plan` made of `source`; ONNX Runtime's CPU provider is asked how it would run it."""
    readers = readers_of(onnx.load_from_string(optimized_model(variant)))
    real: dict[str, str] = {}
    kernels: dict[str, int] = {}
    for item in _asked(source, plan):
        kinds = {node.op_type for node in readers.get(item.weight, ())}
        for kind in kinds:
            kernels[kind] = kernels.get(kind, 0) + 1
        if item.treatment.is_int8 and kinds and kinds <= INTEGER_OPERATORS:
            real[item.node] = "int8"
        elif item.treatment is Treatment.FLOAT16 and kinds and kinds <= {"MatMul", "FusedMatMul", "Gemm"}:
            real[item.node] = "fp16"
    return _report(source, plan, real, kernels)


def audit_openvino(source: GraphFile, layers: Iterable[ExecutedLayer], plan: Plan) -> GraphAudit:
    """`layers`: what OpenVINO compiled of the variant that `plan` made of `source`."""
    linear: dict[str, ExecutedLayer] = {}
    fused: dict[str, ExecutedLayer] = {}
    for layer in layers:
        if layer.kind in ("FullyConnected", "MatMul"):
            linear.update(dict.fromkeys(layer.nodes, layer))
        if layer.kind in ("Subgraph", "MatMul"):
            fused.update(dict.fromkeys(layer.nodes, layer))
    real: dict[str, str] = {}
    kernels: dict[str, int] = {}
    for item in _asked(source, plan):
        # A layer that took its neighbours in is named after the last of them, or after what it reads.
        names = (item.node, f"{item.node}/bias", item.value) if item.weight else (item.node,)
        found = linear if item.weight else fused
        matching = [found[name] for name in names if name in found]
        if not matching:
            continue
        layer = matching[0]
        kernels[layer.kernel] = kernels.get(layer.kernel, 0) + 1
        integer = layer.kernel.lower().endswith("_i8")
        if item.treatment is Treatment.INT8_STATIC and integer:
            real[item.node] = "int8"
        elif item.treatment is Treatment.INT8_WEIGHTS and layer.precision.lower() == "i8":
            real[item.node] = "int8" if integer else "int8 weights"
    return _report(source, plan, real, kernels)


def _asked(source: GraphFile, plan: Plan) -> list[_Asked]:
    model = onnx.load_from_string(source.model)
    found = []
    maps: list[LinearMap | Convolution] = [*linear_maps(model), *convolutions(model)]
    for item in maps:
        treatment = plan.get(item.group, FLOAT32).treatment
        if treatment is not Treatment.FLOAT32:
            stored = f"{item.weight}/{'q' if treatment.is_int8 else 'half'}"
            found.append(_Asked(item.node, item.value, item.multiply_adds, treatment, stored))
    for product in products(model):
        treatment = plan.get(product.group, FLOAT32).treatment
        if treatment is Treatment.INT8_STATIC:
            found.append(_Asked(product.node, product.left, product.multiply_adds, treatment, ""))
    return found


def _report(source: GraphFile, plan: Plan, real: Mapping[str, str], kernels: Mapping[str, int]) -> GraphAudit:
    asked = _asked(source, plan)
    total = work_of(onnx.load_from_string(source.model)).multiply_adds
    share = {"fp32": float(total)}
    for item in asked:
        if item.node in real:
            share[real[item.node]] = share.get(real[item.node], 0.0) + item.work
            share["fp32"] -= item.work
    fell_back = tuple(item.node for item in asked if item.node not in real)
    return GraphAudit(source.name, {name: amount / total for name, amount in share.items()}, fell_back, kernels)
