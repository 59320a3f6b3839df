# SPDX-License-Identifier: Apache-2.0
"""The `vision` graph: one camera's pixels to scaled tokens."""

from __future__ import annotations

import numpy as np

from vla_edge.export.graph import Graph
from vla_edge.export.layers import array, layer_norm, linear
from vla_edge.policies.smolvla.backbone import BackboneConfig
from vla_edge.policies.smolvla.flow import FlowMatching
from vla_edge.policies.smolvla.vision import EncoderLayer


def build_vision(graph: Graph, model: FlowMatching, config: BackboneConfig, size: tuple[int, int]) -> None:
    """pixels [1, 3, height, width] in −1..1 → tokens [1, N, H], multiplied by √H. `size` is (height, width)."""
    vision, (height, width) = config.vision, size
    vlm = model.vlm_with_expert.vlm.model
    tower, connector = vlm.vision_model, vlm.connector
    patch, hidden_size = vision.patch_size, vision.hidden_size
    rows, columns = height // patch, width // patch
    pixels = graph.input("pixels", (1, 3, height, width))

    with graph.scope("patches"):
        cut = (
            graph.slice(graph.slice(pixels, 2, 0, rows * patch, "whole_rows"), 3, 0, columns * patch, "whole_columns")
            if (height % patch or width % patch)
            else pixels
        )
        blocks = graph.reshape(cut, (3, rows, patch, columns, patch), "blocks")
        by_place = graph.op("Transpose", blocks, name="by_place", perm=[1, 3, 0, 2, 4])
        flat = graph.reshape(by_place, (rows * columns, 3 * patch * patch), "flat")
        embedding = tower.embeddings.patch_embedding
        hidden = linear(graph, flat, array(embedding.weight).reshape(hidden_size, -1), "project")
        places = array(tower.embeddings.position_embedding.weight)[tower.embeddings.position_ids(rows, columns).numpy()]
        hidden = graph.op("Add", hidden, graph.weight(places + array(embedding.bias), "place.bias"), name="place")

    for index, layer in enumerate(tower.encoder.layers):
        with graph.scope(f"layer{index:02d}"):
            hidden = _encoder_layer(graph, hidden, layer, rows * columns, vision.heads)
    hidden = layer_norm(graph, hidden, tower.post_layernorm, "post_norm")

    with graph.scope("connector"):
        factor = config.scale_factor
        down, across = rows // factor, columns // factor
        grid = graph.reshape(hidden, (down, factor, across, factor, hidden_size), "grid")
        shuffled = graph.op("Transpose", grid, name="shuffle", perm=[0, 2, 1, 3, 4])
        merged = graph.reshape(shuffled, (down * across, factor * factor * hidden_size), "merge")
        scale = np.float32(config.text.hidden_size**0.5)
        tokens = linear(graph, merged, array(connector.modality_projection.proj.weight) * scale, "project")
    shape = (1, down * across, config.text.hidden_size)
    graph.output(graph.reshape(tokens, shape, "batch"), "tokens", shape)


def _encoder_layer(graph: Graph, hidden: str, layer: EncoderLayer, rows: int, heads: int) -> str:
    attention, mlp = layer.self_attn, layer.mlp
    size = attention.q_proj.weight.shape[0]
    width = size // heads
    with graph.scope("attention"):
        normed = layer_norm(graph, hidden, layer.layer_norm1, "norm")
        scale = np.float32(width**-0.5)
        weight = np.concatenate(
            (array(attention.q_proj.weight) * scale, array(attention.k_proj.weight), array(attention.v_proj.weight))
        )
        bias = np.concatenate(
            (array(attention.q_proj.bias) * scale, array(attention.k_proj.bias), array(attention.v_proj.bias))
        )
        fused = graph.reshape(linear(graph, normed, weight, "qkv", bias), (rows, 3, heads, width), "heads")
        stacked = graph.op("Transpose", fused, name="heads_first", perm=[1, 2, 0, 3])
        parts = graph.split(stacked, (1, 1, 1), axis=0)
        query, key, value = (
            graph.reshape(part, (heads, rows, width), name) for part, name in zip(parts, ("query", "key", "value"))
        )
        scores = graph.op(
            "MatMul", query, graph.op("Transpose", key, name="key_columns", perm=[0, 2, 1]), name="scores"
        )
        mixed = graph.op("MatMul", graph.op("Softmax", scores, name="softmax", axis=-1), value, name="mix")
        flat = graph.reshape(graph.op("Transpose", mixed, name="rows_first", perm=[1, 0, 2]), (rows, size), "flat")
        projected = linear(graph, flat, array(attention.out_proj.weight), "output", array(attention.out_proj.bias))
    hidden = graph.op("Add", hidden, projected, name="attention_residual")
    with graph.scope("mlp"):
        normed = layer_norm(graph, hidden, layer.layer_norm2, "norm")
        raised = linear(graph, normed, array(mlp.fc1.weight), "up", array(mlp.fc1.bias))
        active = graph.op("Gelu", raised, name="gelu", approximate="tanh")
        lowered = linear(graph, active, array(mlp.fc2.weight), "down", array(mlp.fc2.bias))
    return graph.op("Add", hidden, lowered, name="mlp_residual")
