# SPDX-License-Identifier: Apache-2.0
"""The `backbone` graph's half that is a DINOv2: one camera's normalised picture to the normed rows of its patches.

Computed here, exactly: the places of a picture of this size, the class token's row, which is the same for every
picture, and each scale, which goes into the linear map before it.
"""

from __future__ import annotations

import numpy as np
from torch import nn

from vla_edge.export.act.attention import Attention, self_attention
from vla_edge.export.graph import Graph
from vla_edge.export.layers import Array, array, layer_norm, linear
from vla_edge.policies.act.dinov2 import HEAD_WIDTH, PATCH, DINOv2, Layer, Scale


def build_dinov2(graph: Graph, pixels: str, net: DINOv2, grid: tuple[int, int]) -> str:
    """pixels [1, 3, height, width] of grid · 14 → rows [N, channels] of its patches, row by row."""
    (rows, columns), width = grid, net.channels
    count = rows * columns
    with graph.scope("patches"):
        blocks = graph.reshape(pixels, (3, rows, PATCH, columns, PATCH), "blocks")
        by_place = graph.op("Transpose", blocks, name="by_place", perm=[1, 3, 0, 2, 4])
        flat = graph.reshape(by_place, (count, 3 * PATCH**2), "flat")
        projection, places = net.embeddings.patch_embeddings.projection, array(net.embeddings.places(rows, columns))[0]
        patches = linear(graph, flat, array(projection.weight).reshape(width, -1), "project")
        shift = graph.weight(places[1:] + array(projection.bias), "place.bias")
        placed = graph.op("Add", patches, shift, name="place")
        first = graph.weight(array(net.embeddings.cls_token)[0] + places[:1], "class")
        hidden = graph.op("Concat", first, placed, name="rows", axis=0)
    for index, layer in enumerate(net.encoder.layer):
        with graph.scope(f"layer{index:02d}"):
            hidden = _layer(graph, hidden, layer, (1 + count, width))
    return layer_norm(graph, graph.slice(hidden, 0, 1, 1 + count, "without_class"), net.layernorm, "norm")


def _layer(graph: Graph, hidden: str, layer: Layer, shape: tuple[int, int]) -> str:
    with graph.scope("attention"):
        normed = layer_norm(graph, hidden, layer.norm1, "norm")
        mixed = self_attention(graph, normed, _attention(layer), shape)
    hidden = graph.op("Add", hidden, mixed, name="attention_residual")
    with graph.scope("mlp"):
        normed = layer_norm(graph, hidden, layer.norm2, "norm")
        raised = linear(graph, normed, array(layer.mlp.fc1.weight), "up", array(layer.mlp.fc1.bias))
        weight, bias = _scaled(layer.mlp.fc2, layer.layer_scale2)
        lowered = linear(graph, graph.op("Gelu", raised, name="gelu"), weight, "down", bias)
    return graph.op("Add", hidden, lowered, name="mlp_residual")


def _attention(layer: Layer) -> Attention:
    own = layer.attention.attention
    query, key, value = ((array(part.weight), array(part.bias)) for part in (own.query, own.key, own.value))
    scale = np.float32(HEAD_WIDTH**-0.5)
    output = _scaled(layer.attention.output.dense, layer.layer_scale1)
    return Attention((query[0] * scale, query[1] * scale), key, value, output, len(query[1]) // HEAD_WIDTH)


def _scaled(linear_map: nn.Linear, scale: Scale) -> tuple[Array, Array]:
    factor = array(scale.lambda1)
    return array(linear_map.weight) * factor[:, None], array(linear_map.bias) * factor
