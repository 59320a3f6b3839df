# SPDX-License-Identifier: Apache-2.0
"""An engine that shows what goes into the linear maps while the graphs run in their real sequence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from vla_edge.bundle import GraphFile, TensorSpec
from vla_edge.calibration.precision.convolution import watched_values
from vla_edge.calibration.precision.linear import linear_maps, shapes_of
from vla_edge.calibration.precision.products import products
from vla_edge.engines.bindings import LoadedGraph
from vla_edge.engines.engine import Engine
from vla_edge.engines.flow_loop import FlowGraphs, FlowLoop, PythonLoop

Listener = Callable[[str, str, NDArray[np.float32]], None]
"""Called after each run with graph, value name and the value [rows, channels], which is overwritten by the next run.
Of the inputs of attention's products and of what convolutions read and make only two rows are told: each channel's
largest and smallest number."""


class ObservingEngine:
    """Behaves like `engine`; every graph tells `listener` the inputs of its linear maps after each run."""

    def __init__(self, engine: Engine, listener: Listener) -> None:
        self.name = engine.name
        self.detail = engine.detail
        self._engine = engine
        self._listener = listener

    def allocate(self, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        return self._engine.allocate(shape, dtype)

    def flow_loop(self, graphs: FlowGraphs) -> FlowLoop:
        """A native loop would run past the listener."""
        return PythonLoop(graphs)

    def load(self, graph: GraphFile) -> ObservedGraph:
        model = onnx.load_from_string(graph.model)
        shapes = shapes_of(model)
        values = sorted({item.value for item in linear_maps(model)} - {spec.name for spec in graph.spec.inputs})
        taps = [TensorSpec(f"tap/{index}", shapes[value], "float32") for index, value in enumerate(values)]
        for tap, value in zip(taps, values):
            model.graph.node.append(helper.make_node("Identity", [value], [tap.name], tap.name))
        for value in dict.fromkeys(name for item in products(model) for name in (item.left, item.right)):
            taps.append(TensorSpec(f"tap/{len(taps)}", (2, shapes[value][-1]), "float32"))
            values.append(value)
            _append_extremes(model.graph, value, taps[-1].name, list(range(len(shapes[value]) - 1)))
        for value in watched_values(model):
            taps.append(TensorSpec(f"tap/{len(taps)}", (2, shapes[value][1]), "float32"))
            values.append(value)
            _append_extremes(model.graph, value, taps[-1].name, [0, 2, 3])
        for tap in taps:
            model.graph.output.append(helper.make_tensor_value_info(tap.name, TensorProto.FLOAT, tap.shape))
        spec = replace(graph.spec, outputs=(*graph.spec.outputs, *taps))
        inner = self._engine.load(replace(graph, model=model.SerializeToString(), spec=spec))
        buffers = {value: self._engine.allocate(tap.shape, tap.dtype) for tap, value in zip(taps, values)}
        for tap, value in zip(taps, values):
            inner.bind_output(tap.name, buffers[value])
        return ObservedGraph(graph, inner, buffers, self._listener)


def _append_extremes(graph: onnx.GraphProto, value: str, tap: str, axes: list[int]) -> None:
    """Two rows: maximum and minimum of `value` over `axes`, all but the channels'."""
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(axes, np.int64), f"{tap}/axes"))
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, -1], np.int64), f"{tap}/row"))
    for kind in ("ReduceMax", "ReduceMin"):
        graph.node.append(
            helper.make_node(kind, [value, f"{tap}/axes"], [f"{tap}/{kind}"], f"{tap}/{kind}", keepdims=0)
        )
        graph.node.append(
            helper.make_node("Reshape", [f"{tap}/{kind}", f"{tap}/row"], [f"{tap}/{kind}/row"], f"{tap}/{kind}/row")
        )
    graph.node.append(helper.make_node("Concat", [f"{tap}/ReduceMax/row", f"{tap}/ReduceMin/row"], [tap], tap, axis=0))


class ObservedGraph(LoadedGraph):
    """A loaded graph that shows only the tensors of the graph that was asked for, and tells the listener the rest."""

    def __init__(
        self, graph: GraphFile, inner: LoadedGraph, taps: Mapping[str, NDArray[np.float32]], listener: Listener
    ) -> None:
        super().__init__(graph)
        self._inner, self._taps, self._listener = inner, taps, listener

    def _attach(self, name: str, array: NDArray[Any]) -> None:
        (self._inner.bind_input if name in self.inputs else self._inner.bind_output)(name, array)

    def _execute(self) -> None:
        self._inner.run()
        for value, array in self._taps.items():
            self._listener(self.name, value, array.reshape(-1, array.shape[-1]))
