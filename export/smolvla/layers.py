# SPDX-License-Identifier: Apache-2.0
"""The pieces that SmolVLA's graphs share: RMS norm and the gated MLP. Rows are two-dimensional: [rows, width]."""

from __future__ import annotations

import numpy as np

from vla_edge.export.graph import Graph
from vla_edge.export.layers import array, linear
from vla_edge.policies.smolvla.text import Layer, RMSNorm


def rms_norm(graph: Graph, value: str, norm: RMSNorm, name: str) -> str:
    """x / √(mean x² + eps) · weight along the last axis."""
    with graph.scope(name):
        square = graph.op("Pow", value, graph.constant(2.0), name="square")
        mean = graph.op("ReduceMean", square, graph.constant([-1], "int64"), name="mean", keepdims=1)
        root = graph.op("Sqrt", graph.op("Add", mean, graph.constant(norm.eps), name="eps"), name="root")
        unit = graph.op("Div", value, root, name="unit")
        return graph.op("Mul", unit, graph.weight(array(norm.weight), "weight"), name="scale")


def silu(graph: Graph, value: str) -> str:
    """x · sigmoid(x)."""
    return graph.op("Mul", value, graph.op("Sigmoid", value, name="sigmoid"), name="silu")


def swiglu(graph: Graph, value: str, layer: Layer) -> str:
    """down(silu(gate(x)) · up(x)), gate and up as one matrix."""
    with graph.scope("mlp"):
        gate, up = array(layer.mlp.gate_proj.weight), array(layer.mlp.up_proj.weight)
        both = linear(graph, value, np.concatenate((gate, up)), "gate_up")
        opened, raised = graph.split(both, (len(gate), len(up)), axis=1)
        mixed = graph.op("Mul", silu(graph, opened), raised, name="product")
        return linear(graph, mixed, array(layer.mlp.down_proj.weight), "down")


def finish(graph: Graph, hidden: str, mixed: str, layer: Layer) -> str:
    """What follows the attention: output projection, residual, norm, MLP, residual. `mixed` [rows, query width]."""
    with graph.scope("attention"):
        projected = linear(graph, mixed, array(layer.self_attn.o_proj.weight), "output")
    hidden = graph.op("Add", hidden, projected, name="attention_residual")
    normed = rms_norm(graph, hidden, layer.post_attention_layernorm, "post_norm")
    return graph.op("Add", hidden, swiglu(graph, normed, layer), name="mlp_residual")
