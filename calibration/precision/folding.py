# SPDX-License-Identifier: Apache-2.0
"""Scale folding: channels that are large in the activations are made smaller there and larger in the weights.

A norm's output and the linear maps that read it are divided and multiplied by
the same factors, so the graph computes the same; but a quantiser then sees
channels of like size. Source: Xiao 2023 (SmoothQuant), arXiv 2211.10438, eq. 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from vla_edge.bundle import GraphFile
from vla_edge.calibration.precision.linear import TensorSink, linear_maps, readers_of, weight_arrays
from vla_edge.calibration.precision.ranges import Ranges, Tap
from vla_edge.engines.onnx_file import external_tensors

STRENGTH = 0.5
"""Share of a channel's size that moves into the weights (alpha of the paper)."""

Array = NDArray[Any]


@dataclass(frozen=True)
class Folds:
    """Factors float32 [channels] by (graph, value): the value is divided by them."""

    factors: Mapping[tuple[str, str], NDArray[np.float32]]

    def of(self, graph: str) -> dict[str, NDArray[np.float32]]:
        return {value: factors for (name, value), factors in self.factors.items() if name == graph}

    def tap(self, graph: str, value: str, tap: Tap) -> Tap:
        """The tap of a value after folding; its span is the channels' new extremes."""
        factors = self.factors.get((graph, value))
        if factors is None:
            return tap
        channels = tap.channels / factors
        largest = float(channels.max())
        return Tap(-largest if tap.low < 0 else 0.0, largest, channels)


def folds_of(graphs: list[GraphFile], ranges: Ranges) -> Folds:
    """Factors for every norm whose output goes into linear maps only.

    Graphs that share a weight (`prefix` and `state`) get the same factors, so that they go on sharing it.
    """
    channels: dict[str, NDArray[np.float32]] = {}
    weights: dict[str, NDArray[np.float32]] = {}
    places: dict[tuple[str, str], str] = {}
    for graph in graphs:
        model = onnx.load_from_string(graph.model)
        arrays = weight_arrays(graph, model)
        where = {tensor.name: f"{tensor.file}:{tensor.offset}" for tensor in external_tensors(graph.model)}
        readers = readers_of(model)
        for value in _foldable(model, readers):
            tap = ranges.taps.get((graph.name, value))
            if tap is None:
                continue
            names = [node.input[1] for node in readers[value]]
            shared = "+".join(sorted(where.get(name, f"{graph.name}/{name}") for name in names))
            places[graph.name, value] = shared
            channels[shared] = np.maximum(channels.get(shared, np.float32(0)), tap.channels)
            weights[shared] = np.max([np.abs(arrays[name]).max(axis=1) for name in names], axis=0)
    factors = {shared: _factors(channels[shared], weights[shared]) for shared in channels}
    return Folds({place: factors[shared] for place, shared in places.items()})


def fold(
    model: onnx.ModelProto, arrays: Mapping[str, Array], factors: Mapping[str, Array], sink: TensorSink
) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """The same graph with other constants: norms divided, linear maps multiplied."""
    changed: dict[str, Array] = {}
    readers = readers_of(model)
    for node in model.graph.node:
        if node.output[0] in factors:
            scale = factors[node.output[0]]
            for name in _norm_constants(node):
                changed[name] = (arrays[name] / scale).astype(np.float32)
            for reader in readers[node.output[0]]:
                changed[reader.input[1]] = (arrays[reader.input[1]] * scale[:, None]).astype(np.float32)
    folded = onnx.ModelProto()
    folded.CopyFrom(model)
    for item in folded.graph.initializer:
        if item.name in changed:
            item.CopyFrom(sink.tensor(item.name, changed[item.name]))
    return folded, {**arrays, **changed}


def _foldable(model: onnx.ModelProto, readers: Mapping[str, list[onnx.NodeProto]]) -> list[str]:
    """Outputs of norms that only linear maps read, with constants that nothing else reads."""
    linear = {item.node for item in linear_maps(model)}
    found = []
    for node in model.graph.node:
        constants = _norm_constants(node)
        value = node.output[0]
        after = readers.get(value, [])
        only_linear = bool(after) and all(reader.name in linear and reader.input[0] == value for reader in after)
        if constants and only_linear:
            own = (*constants, *(reader.input[1] for reader in after))
            if all(len(readers[name]) == 1 for name in own):
                found.append(value)
    return found


def _norm_constants(node: onnx.NodeProto) -> list[str]:
    """The weights that scale a norm's output: of a LayerNormalization, or of the last Mul of an RMS norm."""
    if node.op_type == "LayerNormalization":
        return list(node.input[1:])
    return [node.input[1]] if node.op_type == "Mul" and node.name.endswith("norm/scale") else []


def _factors(activation: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float32]:
    scale = np.maximum(activation, 1e-5) ** STRENGTH / np.maximum(weight, 1e-5) ** (1 - STRENGTH)
    found: NDArray[np.float32] = (scale / np.exp(np.log(scale).mean())).astype(np.float32)
    return found
