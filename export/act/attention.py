# SPDX-License-Identifier: Apache-2.0
"""Attention of ACT's graphs: rows to queries, keys and values of every head, their mix, and the output's map."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import nn

from vla_edge.export.graph import Graph
from vla_edge.export.layers import Array, array, linear


@dataclass(frozen=True, slots=True)
class Attention:
    """An attention's weights: projections [width, width] and [width] each of queries, keys and values, and of the
    output. Queries are scaled."""

    query: tuple[Array, Array]
    key: tuple[Array, Array]
    value: tuple[Array, Array]
    output: tuple[Array, Array]
    heads: int


def attention_of(module: nn.MultiheadAttention) -> Attention:
    """The weights of torch's attention."""
    weights, biases = (np.split(array(item), 3) for item in (module.in_proj_weight, module.in_proj_bias))
    scale = np.float32(module.head_dim**-0.5)
    output = (array(module.out_proj.weight), array(module.out_proj.bias))
    query, key, value = zip(weights, biases)
    return Attention((query[0] * scale, query[1] * scale), key, value, output, module.num_heads)


def self_attention(
    graph: Graph, inner: str, attention: Attention, shape: tuple[int, ...], places: Array | None = None
) -> str:
    """Queries and keys of inner + places (None: of inner), values of inner [N, D] of `shape`, as one product: places'
    part of it is a constant."""
    rows, width = shape
    parts = (attention.query, attention.key, attention.value)
    weight = np.concatenate([part[0] for part in parts])
    shift = np.concatenate([part[1] for part in parts])
    if places is not None:
        placed = (places @ part[0].T + part[1] for part in parts[:2])
        shift = np.concatenate((*placed, np.tile(attention.value[1], (rows, 1))), axis=1)
    fused = graph.split(linear(graph, inner, weight, "qkv", shift), (width,) * 3, axis=1)
    query, key, value = (
        heads_first(graph, part, rows, attention.heads, name) for name, part in zip(("q", "k", "v"), fused)
    )
    return attend(graph, query, key, value, rows, attention)


def attend(graph: Graph, query: str, key: str, value: str, rows: int, attention: Attention) -> str:
    """softmax(query · keyᵀ) · value and the output projection: [rows, D]."""
    columns = graph.op("Transpose", key, name="key_columns", perm=[0, 2, 1])
    weights = graph.op("Softmax", graph.op("MatMul", query, columns, name="scores"), name="softmax", axis=-1)
    back = graph.op("Transpose", graph.op("MatMul", weights, value, name="mix"), name="rows_first", perm=[1, 0, 2])
    weight, bias = attention.output
    return linear(graph, graph.reshape(back, (rows, len(bias)), "flat"), weight, "output", bias)


def heads_first(graph: Graph, value: str, rows: int, heads: int, name: str) -> str:
    """[rows, D] → [heads, rows, D / heads]."""
    split = graph.reshape(value, (rows, heads, -1), f"{name}/heads")
    return graph.op("Transpose", split, name=name, perm=[1, 0, 2])
