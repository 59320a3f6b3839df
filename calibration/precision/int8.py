# SPDX-License-Identifier: Apache-2.0
"""Linear maps in INT8, written with ONNX's own operators; weights are signed, symmetric, one scale a column.

Three ways, because what is fast differs (`treatment.py`):

* dynamic: DynamicQuantizeLinear → MatMulInteger → scale. ONNX Runtime fuses it to one operator.
* static: QuantizeLinear/DequantizeLinear around the MatMul; OpenVINO and TensorRT run it on integers.
* weights: DequantizeLinear on the weight alone; OpenVINO quantises the activations itself, in groups of a row.

Columns of the activations that are far larger than the others (outliers) may
be taken out: their part is a thin float MatMul of its own, the rest keeps its
fine scale. Source of the idea: Dettmers 2022 (LLM.int8), arXiv 2208.07339.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from vla_edge.calibration.precision.linear import LinearMap, TensorSink, with_nodes
from vla_edge.engines.dialect import Treatment

Array = NDArray[Any]
HALF_SCALES = (float(np.finfo(np.float16).smallest_subnormal), 65504 / 128)


@dataclass(frozen=True, slots=True)
class Span:
    """Range of an activation tensor, as it is quantised."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Step:
    """What is done to one linear map. span: for INT8_STATIC. outliers: input columns that stay in float."""

    treatment: Treatment
    span: Span | None = None
    outliers: tuple[int, ...] = ()


@dataclass
class Rewriter:
    """Rewrites one graph. `arrays`: the graph's initializers; new tensors go to `sink` and stay in `made`. half: static
    scales are float16, for `to_float16` to take what stands around them to half precision."""

    model: onnx.ModelProto
    arrays: Mapping[str, Array]
    sink: TensorSink
    signed: bool = False
    half: bool = False
    made: dict[str, Array] = field(default_factory=dict)
    _nodes: list[NodeProto] = field(default_factory=list)
    _new: dict[str, TensorProto] = field(default_factory=dict)
    _quantised: dict[tuple[str, Treatment, tuple[int, ...]], str] = field(default_factory=dict)

    def rewrite(self, maps: Mapping[str, LinearMap], steps: Mapping[str, Step]) -> onnx.ModelProto:
        """A new model in which the linear map at each node named in `steps` is done as said there."""
        for node in self.model.graph.node:
            step = steps.get(node.name)
            if step is None or step.treatment in (Treatment.FLOAT32, Treatment.FLOAT16):
                self._nodes.append(node)
            else:
                self._replace(maps[node.name], step)
        return with_nodes(self.model, self._nodes, self._new.values())

    def _replace(self, item: LinearMap, step: Step) -> None:
        weight = np.asarray(self.arrays[item.weight], np.float32)
        value, target = item.value, item.output
        if step.outliers:
            target = f"{item.node}/inliers"
            value = self._without(item.value, step.outliers, item.inner)
        if step.treatment is Treatment.INT8_DYNAMIC:
            self._dynamic(item, value, target, weight)
        elif step.treatment is Treatment.INT8_STATIC:
            assert step.span is not None
            self._static(item, value, target, weight, step.span)
        else:
            self._product(item, value, target, self._weight_back(item, weight))
        if step.outliers:
            columns = list(step.outliers)
            index = self._tensor(f"{item.node}/outlier_columns", np.asarray(columns, np.int64))
            rows = self._tensor(f"{item.node}/outlier_weight", np.ascontiguousarray(weight[columns]))
            self._op("Gather", [item.value, index], f"{item.node}/outliers", axis=1)
            self._op("MatMul", [f"{item.node}/outliers", rows], f"{item.node}/outlier_part")
            self._op("Add", [target, f"{item.node}/outlier_part"], item.output, name=f"{item.node}/join")

    def _dynamic(self, item: LinearMap, value: str, target: str, weight: Array) -> None:
        key = (value, Treatment.INT8_DYNAMIC, ())
        if key not in self._quantised:
            outputs = [f"{value}/q", f"{value}/scale", f"{value}/zero"]
            self._nodes.append(helper.make_node("DynamicQuantizeLinear", [value], outputs, f"{value}/quantise"))
            self._quantised[key] = f"{value}/q"
        quantised, scale = quantise_columns(weight)
        names = [
            self._tensor(f"{item.weight}/{part}", array)
            for part, array in (("q", quantised), ("scale", scale), ("zero", np.zeros(len(scale), np.int8)))
        ]
        self._op("MatMulInteger", [f"{value}/q", names[0], f"{value}/zero", names[2]], f"{item.node}/integer")
        self._op("Cast", [f"{item.node}/integer"], f"{item.node}/sum", to=TensorProto.FLOAT)
        self._op("Mul", [f"{value}/scale", names[1]], f"{item.node}/scale")
        self._op("Mul", [f"{item.node}/sum", f"{item.node}/scale"], target, name=item.node)

    def _static(self, item: LinearMap, value: str, target: str, weight: Array, span: Span) -> None:
        key = (value, Treatment.INT8_STATIC, ())
        if key not in self._quantised:
            self._quantised[key] = self.quantise_activation(value, span)
        self._product(item, self._quantised[key], target, self._weight_back(item, weight))

    def quantise_activation(self, value: str, span: Span) -> str:
        """QuantizeLinear and DequantizeLinear on a float value; returns the value behind them."""
        scale, zero = activation_grid(span, self.signed)
        scale = self._scale(scale)
        names = [self._tensor(f"{value}/scale", scale), self._tensor(f"{value}/zero", zero)]
        self._op("QuantizeLinear", [value, *names], f"{value}/q")
        self._op("DequantizeLinear", [f"{value}/q", *names], f"{value}/dq")
        return f"{value}/dq"

    def _weight_back(self, item: LinearMap, weight: Array) -> str:
        quantised, scale = quantise_columns(weight, self._scale)
        parts = (("q", quantised), ("scale", scale), ("zero", np.zeros(len(scale), np.int8)))
        names = [self._tensor(f"{item.weight}/{part}", array) for part, array in parts]
        return self._op("DequantizeLinear", names, f"{item.weight}/dq", axis=1)

    def _product(self, item: LinearMap, value: str, target: str, weight: str) -> None:
        self._op("MatMul", [value, weight], target, name=item.node)

    def _without(self, value: str, columns: tuple[int, ...], width: int) -> str:
        key = (value, Treatment.FLOAT32, columns)
        if key not in self._quantised:
            mask = np.ones(width, np.float32)
            mask[list(columns)] = 0
            number = len([other for other in self._quantised if other[0] == value])
            name = f"{value}/inliers{number}"
            self._quantised[key] = self._op("Mul", [value, self._tensor(f"{name}/mask", mask)], name)
        return self._quantised[key]

    def _scale(self, scale: Array) -> Array:
        """In half no scale is 0, and 127 of its steps do not overflow."""
        return np.clip(scale, *HALF_SCALES).astype(np.float16) if self.half else scale

    def _op(self, kind: str, inputs: list[str], output: str, name: str | None = None, **attributes: Any) -> str:
        self._nodes.append(helper.make_node(kind, inputs, [output], name or output, **attributes))
        return output

    def _tensor(self, name: str, array: Array) -> str:
        if name not in self._new:
            self.made[name] = array
            self._new[name] = self.sink.tensor(name, array)
        return name


def quantise_columns(weight: Array, rounded: Callable[[Array], Array] = np.asarray) -> tuple[NDArray[np.int8], Array]:
    """[inner, outer] float32 → int8 of the same shape in −127..127 and [outer] with weight ≈ q · scale. rounded: takes
    the scales to the type they are stored in, before anything is quantised by them."""
    scale = (np.abs(weight).max(axis=0) / 127).astype(np.float32)
    scale[scale == 0] = 1
    scale = rounded(scale)
    return np.clip(np.rint(weight / scale.astype(np.float32)), -127, 127).astype(np.int8), scale


def activation_grid(span: Span, signed: bool) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """(scale, zero point) of an activation: uint8 over [low, high], or int8 symmetric. Zero is always on the grid."""
    low, high = min(span.low, 0.0), max(span.high, 0.0)
    if signed:
        return np.array(max(-low, high) / 127 or 1.0, np.float32), np.array(0, np.int8)
    scale = (high - low) / 255 or 1.0
    return np.array(scale, np.float32), np.array(round(-low / scale), np.uint8)
