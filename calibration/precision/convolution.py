# SPDX-License-Identifier: Apache-2.0
"""Convolutions in INT8: values between them go through QuantizeLinear and DequantizeLinear, so that whole runs of
convolutions, sums and pools stay on integers.

A value is quantised where a convolution reads it and where one makes it, behind the ReLU that only it feeds (whose zero
is then the grid's own). A pool keeps its input's grid. Weights are signed, symmetric, one scale an output channel;
biases are int32 on the grid of the products, as x86's kernels add them, and float for TensorRT.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from vla_edge.calibration.precision.int8 import HALF_SCALES, Span, activation_grid
from vla_edge.calibration.precision.linear import TensorSink, readers_of, shapes_of, with_nodes


@dataclass(frozen=True, slots=True)
class Convolution:
    """One convolution of `value` [1, channels, rows, columns] with `weight` [outer, channels, …] and `bias` [outer].
    made: the result, behind its ReLU where nothing else reads it. group: graph and stage (`backbone/stage1`)."""

    node: str
    value: str
    weight: str
    bias: str
    made: str
    multiply_adds: int
    weights: int
    group: str


def convolutions(model: onnx.ModelProto) -> Iterator[Convolution]:
    """Every convolution with a stored weight, in graph order."""
    found = [node for node in model.graph.node if node.op_type == "Conv"]
    if not found:
        return
    shapes, readers = shapes_of(model), readers_of(model)
    for node in found:
        after = readers.get(node.output[0], [])
        relu = len(after) == 1 and after[0].op_type == "Relu"
        weight = shapes[node.input[1]]
        work = int(np.prod(shapes[node.output[0]], dtype=np.int64)) * int(np.prod(weight[1:]))
        value, stored, bias = node.input
        made = after[0].output[0] if relu else node.output[0]
        group = f"{model.graph.name}/{node.name.split('/')[0]}"
        yield Convolution(node.name, value, stored, bias, made, work, int(np.prod(weight)), group)


def watched_values(model: onnx.ModelProto) -> list[str]:
    """The values whose ranges INT8 convolutions need, each once, in the order in which they are made."""
    values = dict.fromkeys(name for item in convolutions(model) for name in (item.value, item.made))
    made = {name: index for index, node in enumerate(model.graph.node) for name in node.output}
    return sorted(values, key=lambda name: made.get(name, -1))


@dataclass
class ConvolutionRewriter:
    """Rewrites one graph. spans: of every value of `watched_values`. The rest is as `Rewriter` has it."""

    model: onnx.ModelProto
    arrays: Mapping[str, NDArray[Any]]
    spans: Mapping[str, Span]
    sink: TensorSink
    signed: bool
    half: bool
    _nodes: list[onnx.NodeProto] = field(default_factory=list)
    _new: dict[str, TensorProto] = field(default_factory=dict)
    _scale_of: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def rewrite(self, chosen: Mapping[str, Convolution]) -> onnx.ModelProto:
        """A model in which these convolutions, by their node, run on integers."""
        graph = self.model.graph
        wanted = {name for item in chosen.values() for name in (item.value, item.made)}
        grids = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "MaxPool"}
        back: dict[str, str] = {}
        for value in graph.input:
            if value.name in wanted:
                back[value.name] = self._quantise(value.name, value.name)
        for node in graph.node:
            made = onnx.NodeProto()
            made.CopyFrom(node)
            made.input[:] = [back.get(name, name) for name in node.input]
            if node.name in chosen:
                made.input[1:3] = self._stored(chosen[node.name])
            self._nodes.append(made)
            for name in node.output:
                if name in wanted:
                    source = grids.get(name, name)
                    back[name] = self._quantise(name, source if source in wanted else name)
        return with_nodes(self.model, self._nodes, self._new.values())

    def _quantise(self, value: str, grid_of: str) -> str:
        """The value behind QuantizeLinear and DequantizeLinear, on the grid of the value `grid_of`."""
        scale, zero = activation_grid(self.spans[grid_of], self.signed)
        self._scale_of[value] = scale
        names = [
            self._tensor(f"{value}/conv/scale", self._stored_scale(scale)),
            self._tensor(f"{value}/conv/zero", zero),
        ]
        self._op("QuantizeLinear", [value, *names], f"{value}/conv/q")
        return self._op("DequantizeLinear", [f"{value}/conv/q", *names], f"{value}/conv/dq")

    def _stored(self, item: Convolution) -> tuple[str, str]:
        """The weight and the bias behind DequantizeLinear."""
        weight = np.asarray(self.arrays[item.weight], np.float32)
        scale = (np.abs(weight).max(axis=(1, 2, 3)) / 127).astype(np.float32)
        scale[scale == 0] = 1
        scale = self._stored_scale(scale).astype(np.float32)
        steps = np.clip(np.rint(weight / scale[:, None, None, None]), -127, 127).astype(np.int8)
        zero = np.zeros(len(scale), np.int8)
        parts = (("q", steps), ("scale", self._stored_scale(scale)), ("zero", zero))
        names = [self._tensor(f"{item.weight}/{part}", array) for part, array in parts]
        stored = self._op("DequantizeLinear", names, f"{item.weight}/dq", axis=0)
        if self.signed:
            return stored, item.bias
        of_products = (scale * self._scale_of[item.value]).astype(np.float32)
        bias = np.clip(np.rint(self.arrays[item.bias] / of_products), -(2**31) + 1, 2**31 - 1).astype(np.int32)
        names = [self._tensor(f"{item.bias}/q", bias), self._tensor(f"{item.bias}/scale", of_products)]
        return stored, self._op("DequantizeLinear", names, f"{item.bias}/dq", axis=0)

    def _stored_scale(self, scale: NDArray[np.float32]) -> NDArray[Any]:
        return np.clip(scale, *HALF_SCALES).astype(np.float16) if self.half else scale

    def _op(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self._nodes.append(helper.make_node(kind, inputs, [output], output, **attributes))
        return output

    def _tensor(self, name: str, array: NDArray[Any]) -> str:
        if name not in self._new:
            self._new[name] = self.sink.tensor(name, array)
        return name
