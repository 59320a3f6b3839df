# SPDX-License-Identifier: Apache-2.0
"""The pieces that graphs of every family use: linear maps and layer norms. Rows are two-dimensional: [rows, width]."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from vla_edge.export.graph import Graph

Array = NDArray[np.float32]


def array(parameter: Any) -> Array:
    """A torch parameter's values in float32, whatever type the checkpoint has."""
    values: Array = parameter.detach().float().cpu().numpy()
    return values


def linear(graph: Graph, value: str, weight: Array, name: str, bias: Array | None = None) -> str:
    """value [rows, in] · weightᵀ (+ bias); `weight` is [out, in] as torch has it. The MatMul's node is called
    `name`."""
    product = graph.op("MatMul", value, graph.weight(weight.T, f"{name}.weight"), name=name)
    if bias is None:
        return product
    return graph.op("Add", product, graph.weight(bias, f"{name}.bias"), name=f"{name}/bias")


def layer_norm(graph: Graph, value: str, norm: nn.LayerNorm, name: str) -> str:
    """Torch's LayerNorm along the last axis."""
    weight = graph.weight(array(norm.weight), f"{name}.weight")
    bias = graph.weight(array(norm.bias), f"{name}.bias")
    return graph.op("LayerNormalization", value, weight, bias, name=name, axis=-1, epsilon=norm.eps)
