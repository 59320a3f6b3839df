# SPDX-License-Identifier: Apache-2.0
"""A graph of the bundle rewritten as a plan says: the same name and tensors, another precision inside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from vla_edge.bundle import GraphFile
from vla_edge.calibration.precision.convolution import Convolution, ConvolutionRewriter, convolutions, watched_values
from vla_edge.calibration.precision.float16 import to_float16
from vla_edge.calibration.precision.folding import Folds, fold
from vla_edge.calibration.precision.int8 import Rewriter, Step
from vla_edge.calibration.precision.linear import LinearMap, TensorSink, external_tensor, linear_maps, weight_arrays
from vla_edge.calibration.precision.products import products, quantise_products
from vla_edge.calibration.precision.ranges import Ranges, Tap
from vla_edge.engines.bindings import LoadedGraph
from vla_edge.engines.dialect import Treatment
from vla_edge.engines.engine import Engine
from vla_edge.engines.flow_loop import FlowGraphs, FlowLoop
from vla_edge.errors import ConfigError

SCRATCH = "candidate.bin"


@dataclass(frozen=True, slots=True)
class Choice:
    """What a plan says of one group. outlier_ratio: activation channels that exceed the median channel's largest
    magnitude by this factor stay in float (0: none)."""

    treatment: Treatment
    outlier_ratio: float = 0.0

    def __str__(self) -> str:
        return self.treatment.value + (
            f", outliers above {self.outlier_ratio:g}× in float" if self.outlier_ratio else ""
        )


FLOAT32, HALF = Choice(Treatment.FLOAT32), Choice(Treatment.FLOAT16)
Plan = Mapping[str, Choice]
"""Choice by group; a group that is not named stays in float32."""


@dataclass(frozen=True, slots=True)
class Group:
    """Linear maps of one kind in one graph, a graph's attention products, or the convolutions of one stage; what a plan
    decides on together. weights: how many numbers a run reads."""

    name: str
    graph: str
    multiply_adds: int
    products: bool = False
    weights: int = 0
    convolution: bool = False


@dataclass(frozen=True)
class VariantSettings:
    """ranges: None where no treatment of the plan needs recorded data. folds: scale folding, applied first. half: what
    is not INT8 is in half precision, around static INT8 too."""

    ranges: Ranges | None = None
    signed: bool = False
    folds: Folds | None = None
    half: bool = False


@dataclass
class MemorySink:
    """Keeps tensors in one block of memory, under the name of a file that is never written."""

    data: bytearray

    def tensor(self, name: str, array: NDArray[Any]) -> TensorProto:
        array = np.asarray(array, order="C")
        if array.nbytes <= 256:
            return onnx.numpy_helper.from_array(array, name)
        self.data.extend(bytes(-len(self.data) % 64))
        proto = external_tensor(name, array, SCRATCH, len(self.data))
        self.data.extend(array.tobytes())
        return proto


def groups_of(graph: GraphFile) -> list[Group]:
    """The groups of one graph, in graph order."""
    model = onnx.load_from_string(graph.model)
    work: Counter[str] = Counter()
    weights: Counter[str] = Counter()
    for item in linear_maps(model):
        work[item.group] += item.multiply_adds
        weights[item.group] += item.inner * item.outer
    found = [Group(name, graph.name, amount, weights=weights[name]) for name, amount in work.items()]
    stages: dict[str, list[Convolution]] = {}
    for conv in convolutions(model):
        stages.setdefault(conv.group, []).append(conv)
    for name, convs in stages.items():
        work_of_stage, read = sum(conv.multiply_adds for conv in convs), sum(conv.weights for conv in convs)
        found.append(Group(name, graph.name, work_of_stage, weights=read, convolution=True))
    inner = products(model)
    if inner:
        found.append(Group(inner[0].group, graph.name, sum(item.multiply_adds for item in inner), products=True))
    return found


def build(graph: GraphFile, plan: Plan, settings: VariantSettings, sink: TensorSink) -> onnx.ModelProto:
    """The rewritten model; its new tensors are in `sink`, the others where they were.

    ConfigError: the plan needs ranges of a value that was not recorded.
    """
    model = onnx.load_from_string(graph.model)
    arrays = weight_arrays(graph, model)
    if settings.folds is not None:
        model, arrays = fold(model, arrays, settings.folds.of(graph.name), sink)
    treatments = {choice.treatment for name, choice in plan.items() if name.startswith(f"{graph.name}/")}
    half = settings.half or Treatment.FLOAT16 in treatments
    quantised = {
        item.node: item
        for item in convolutions(model)
        if plan.get(item.group, FLOAT32).treatment is Treatment.INT8_STATIC
    }
    if quantised:
        spans = {value: _tap(settings, graph.name, value).span() for value in watched_values(model)}
        model = ConvolutionRewriter(model, arrays, spans, sink, settings.signed, half).rewrite(quantised)
    maps = {item.node: item for item in linear_maps(model)}
    steps = {node: _step(graph.name, item, plan.get(item.group, FLOAT32), settings) for node, item in maps.items()}
    inner = {
        item.node: (_tap(settings, graph.name, item.left).span(), _tap(settings, graph.name, item.right).span())
        for item in products(model)
        if plan.get(item.group, FLOAT32).treatment is Treatment.INT8_STATIC
    }
    if inner:
        model = quantise_products(model, inner, sink)
    rewriter = Rewriter(model, arrays, sink, settings.signed, half)
    model = rewriter.rewrite(maps, steps)
    if half:
        model = to_float16(model, {**arrays, **rewriter.made}, sink)
    return model


def settled(model: onnx.ModelProto, arrays: Mapping[str, NDArray[Any]], own: str, sink: TensorSink) -> onnx.ModelProto:
    """Move every external tensor that does not lie in the file `own` to `sink`, so that the model needs one file
    only."""
    moved = onnx.ModelProto()
    moved.CopyFrom(model)
    for item in moved.graph.initializer:
        where = {entry.key: entry.value for entry in item.external_data}
        if item.data_location == TensorProto.EXTERNAL and where["location"] != own:
            item.CopyFrom(sink.tensor(item.name, arrays[item.name]))
    return moved


@dataclass
class VariantEngine:
    """Behaves like `engine`, with the graphs in `variants` in place of the bundle's own."""

    engine: Engine
    variants: Mapping[str, GraphFile]

    def __post_init__(self) -> None:
        self.name, self.detail = self.engine.name, self.engine.detail

    def allocate(self, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        return self.engine.allocate(shape, dtype)

    def flow_loop(self, graphs: FlowGraphs) -> FlowLoop:
        return self.engine.flow_loop(graphs)

    def load(self, graph: GraphFile) -> LoadedGraph:
        return self.engine.load(self.variants.get(graph.name, graph))


def in_memory(graph: GraphFile, plan: Plan, settings: VariantSettings) -> GraphFile:
    """The variant as a graph file that was never written, for an engine that takes its tensors from memory."""
    sink = MemorySink(bytearray())
    model = build(graph, plan, settings, sink)
    weights = {**graph.weights, SCRATCH: memoryview(sink.data)} if sink.data else graph.weights
    return replace(graph, model=model.SerializeToString(), weights=weights, verified={})


def _step(graph: str, item: LinearMap, choice: Choice, settings: VariantSettings) -> Step:
    if choice.treatment is not Treatment.INT8_STATIC and not choice.outlier_ratio:
        return Step(choice.treatment)
    if settings.ranges is not None and (graph, item.value) not in settings.ranges.taps:
        return Step(Treatment.FLOAT32)
    tap = _tap(settings, graph, item.value)
    if settings.folds is not None:
        tap = settings.folds.tap(graph, item.value, tap)
    outliers = tap.outliers(choice.outlier_ratio) if choice.outlier_ratio else ()
    inliers = tap.without(outliers) if outliers else tap
    return Step(choice.treatment, inliers.span(), outliers)


def _tap(settings: VariantSettings, graph: str, value: str) -> Tap:
    """What was recorded of a value. ConfigError: nothing was recorded."""
    if settings.ranges is None:
        raise ConfigError(f"{graph}: static INT8 needs recorded ranges; give --dataset DATASET")
    return settings.ranges.taps[graph, value]
