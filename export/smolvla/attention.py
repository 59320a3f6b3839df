# SPDX-License-Identifier: Apache-2.0
"""Grouped-query attention with RoPE, as text model and experts have it (docs/policy.md §1.7–1.10).

Keys and values stand heads first, [kv heads, rows, head width]. A key-value
head is multiplied with the rows of all its query heads at once, so keys and
values are never repeated. Masks are added as a finite number: −inf would make
a fully masked row NaN, and the smallest float32 overflows float16.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vla_edge.export.graph import Graph
from vla_edge.export.layers import Array, array, linear
from vla_edge.policies.smolvla.text import ROPE_BASE, Projections, TextModel

MASKED = 30_000.0
"""Subtracted from the score of a masked key: its weight is exactly 0 after softmax, and float16 can hold it."""


@dataclass(frozen=True, slots=True)
class Heads:
    """Attention's sizes: query heads, key-value heads, width of one."""

    query: int
    kv: int
    width: int

    @property
    def group(self) -> int:
        """Query heads that share one key-value head."""
        return self.query // self.kv


@dataclass(frozen=True, slots=True)
class Angles:
    """RoPE of some rows: values of shape [rows, 1, head width / 2]."""

    cosine: str
    sine: str


@dataclass(frozen=True, slots=True)
class KeyValue:
    """Rotated keys and plain values of some rows, each [kv heads, rows, head width]."""

    key: str
    value: str


def heads_of(text: TextModel) -> Heads:
    """The sizes that text model and experts share."""
    first = text.layers[0].self_attn
    return Heads(
        first.q_proj.out_features // first.head_dim, first.k_proj.out_features // first.head_dim, first.head_dim
    )


def rope_angles(graph: Graph, positions: str, rows: int, heads: Heads) -> Angles:
    """RoPE at `positions` [rows], computed in the graph."""
    with graph.scope("rope"):
        column = graph.reshape(positions, (rows, 1, 1), "column")
        angles = graph.op("Div", column, graph.constant(_timescale(heads)), name="angles")
        return Angles(graph.op("Cos", angles, name="cosine"), graph.op("Sin", angles, name="sine"))


def constant_angles(graph: Graph, rows: int, heads: Heads) -> Angles:
    """RoPE at positions 0 … rows − 1, known at export."""
    angles = np.arange(rows, dtype=np.float32)[:, None, None] / _timescale(heads)
    return Angles(graph.constant(np.cos(angles)), graph.constant(np.sin(angles)))


def rotate(graph: Graph, value: str, angles: Angles, heads: Heads) -> str:
    """RoPE, half-split, on [rows, any heads, head width]. Joined by Concat: slice assignment exports to scatters."""
    with graph.scope("rotate"):
        first, second = graph.split(value, (heads.width // 2, heads.width // 2), axis=2)
        first_cosine = graph.op("Mul", first, angles.cosine, name="first_cosine")
        second_sine = graph.op("Mul", second, angles.sine, name="second_sine")
        second_cosine = graph.op("Mul", second, angles.cosine, name="second_cosine")
        first_sine = graph.op("Mul", first, angles.sine, name="first_sine")
        turned = (
            graph.op("Sub", first_cosine, second_sine, name="first"),
            graph.op("Add", second_cosine, first_sine, name="second"),
        )
        return graph.op("Concat", *turned, name="join", axis=2)


def query_key_value(
    graph: Graph, normed: str, layer: Projections, angles: Angles, rows: int, heads: Heads
) -> tuple[str, KeyValue]:
    """normed [rows, width] → scaled, rotated queries [query heads, rows, head width] and these rows' keys and
    values."""
    both = heads.query + heads.kv
    weight = np.concatenate((_scaled_query(layer, heads), array(layer.k_proj.weight), array(layer.v_proj.weight)))
    fused = linear(graph, normed, weight, "qkv")
    turning, value = graph.split(fused, (both * heads.width, heads.kv * heads.width), axis=1)
    turned = rotate(graph, graph.reshape(turning, (rows, both, heads.width), "heads"), angles, heads)
    query, key = graph.split(
        graph.op("Transpose", turned, name="heads_first", perm=[1, 0, 2]),
        (heads.query, heads.kv),
        axis=0,
        name="query_key",
    )
    return query, KeyValue(key, heads_first(graph, value, rows, heads, "value"))


def key_value(graph: Graph, normed: str, layer: Projections, angles: Angles, rows: int, heads: Heads) -> KeyValue:
    """Keys and values alone, for the last text layer."""
    fused = linear(graph, normed, np.concatenate((array(layer.k_proj.weight), array(layer.v_proj.weight))), "kv")
    key, value = graph.split(fused, (heads.kv * heads.width,) * 2, axis=1)
    turned = rotate(graph, graph.reshape(key, (rows, heads.kv, heads.width), "heads"), angles, heads)
    return KeyValue(
        graph.op("Transpose", turned, name="key", perm=[1, 0, 2]), heads_first(graph, value, rows, heads, "value")
    )


def query(graph: Graph, normed: str, layer: Projections, angles: Angles | None, rows: int, heads: Heads) -> str:
    """Queries alone, [query heads, rows, head width], for rows that bring no keys; without angles they stand at
    position 0."""
    heads_of_rows = graph.reshape(
        linear(graph, normed, _scaled_query(layer, heads), "query"), (rows, heads.query, heads.width), "heads"
    )
    turned = heads_of_rows if angles is None else rotate(graph, heads_of_rows, angles, heads)
    return graph.op("Transpose", turned, name="heads_first", perm=[1, 0, 2])


def project_cache(graph: Graph, cache: KeyValue, layer: Projections, rows: int, heads: Heads) -> KeyValue:
    """A cross-attending expert layer's own keys and values, made of the text layer's; no second rotation."""
    projected = []
    for name, value, weight in (("key", cache.key, layer.k_proj.weight), ("value", cache.value, layer.v_proj.weight)):
        with graph.scope(name):
            flat = graph.reshape(
                graph.op("Transpose", value, name="rows_first", perm=[1, 0, 2]), (rows, heads.kv * heads.width), "flat"
            )
            projected.append(
                heads_first(graph, linear(graph, flat, array(weight), "project"), rows, heads, "heads_first")
            )
    return KeyValue(*projected)


def heads_first(graph: Graph, value: str, rows: int, heads: Heads, name: str) -> str:
    """[rows, kv heads · width] → [kv heads, rows, width]."""
    split = graph.reshape(value, (rows, heads.kv, heads.width), f"{name}/heads")
    return graph.op("Transpose", split, name=name, perm=[1, 0, 2])


def mask_bias(graph: Graph, mask: str, keys: int) -> str:
    """mask [keys], 1 valid and 0 padding → [1, 1, keys] to be added to scores: 0 or −MASKED."""
    with graph.scope("mask"):
        row = graph.reshape(mask, (1, 1, keys), "row")
        return graph.op(
            "Mul", graph.op("Sub", row, graph.constant(1.0), name="invalid"), graph.constant(MASKED), name="bias"
        )


def own_rows_bias(graph: Graph, bias: str, visible: Array, earlier: int, heads: Heads) -> str:
    """Bias for rows that see `earlier` masked keys and then some of their own rows.

    bias [1, 1, earlier]; visible [rows, rows], 1 where a row sees an own row. Returns [1, group·rows, earlier + rows].
    """
    rows = len(visible)
    own = np.concatenate((np.zeros((rows, earlier), np.float32), (visible - 1.0) * MASKED), axis=1)
    wide = graph.op("Concat", bias, graph.constant(np.zeros((1, 1, rows))), name="mask/with_own_rows", axis=2)
    return graph.op("Add", wide, graph.constant(np.tile(own, (heads.group, 1))[None]), name="mask/own_rows")


def attend(graph: Graph, queries: str, seen: KeyValue, bias: str, rows: int, heads: Heads) -> str:
    """softmax(queries · keys + bias) · values → [rows, query heads · head width].

    queries [query heads, rows, head width], scaled; bias broadcasts to [kv heads, group·rows, keys].
    """
    grouped = graph.reshape(queries, (heads.kv, heads.group * rows, heads.width), "group")
    scores = graph.op(
        "MatMul", grouped, graph.op("Transpose", seen.key, name="key_columns", perm=[0, 2, 1]), name="scores"
    )
    weights = graph.op("Softmax", graph.op("Add", scores, bias, name="masked"), name="softmax", axis=-1)
    mixed = graph.op("MatMul", weights, seen.value, name="mix")
    ungrouped = graph.reshape(mixed, (heads.query, rows, heads.width), "ungroup")
    back = graph.op("Transpose", ungrouped, name="rows_first", perm=[1, 0, 2])
    return graph.reshape(back, (rows, heads.query * heads.width), "flat")


def join(graph: Graph, earlier: KeyValue, later: KeyValue) -> KeyValue:
    """Rows of `earlier`, then rows of `later`."""
    return KeyValue(
        graph.op("Concat", earlier.key, later.key, name="join_keys", axis=1),
        graph.op("Concat", earlier.value, later.value, name="join_values", axis=1),
    )


def _scaled_query(layer: Projections, heads: Heads) -> Array:
    return array(layer.q_proj.weight) * np.float32(heads.width**-0.5)


def _timescale(heads: Heads) -> Array:
    """What a position is divided by, float32 [head width / 2], in the policy's order of operations."""
    half = heads.width // 2
    exponents = np.float32(2.0 / heads.width) * np.arange(half, dtype=np.float32)
    return np.power(np.float32(ROPE_BASE), exponents).astype(np.float32)
