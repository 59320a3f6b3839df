# SPDX-License-Identifier: Apache-2.0
"""The `decode` graph: picture tokens and joints to the chunk.

What does not depend on the observation is computed here, exactly: the latent's token (its input is 0), positions, their
products with the projections of queries and keys, and the first decoder layer's attention to itself and queries, whose
rows start at 0.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from vla_edge.export.act.attention import attend, attention_of, heads_first, self_attention
from vla_edge.export.graph import Graph
from vla_edge.export.layers import Array, array, layer_norm, linear
from vla_edge.policies.act.network import ACT, DecoderLayer, EncoderLayer, grid_positions


def build_decode(graph: Graph, model: ACT, grid: tuple[int, int], cameras: int) -> None:
    """image_tokens [1, cameras·N, D], state [1, joints] → chunk [1, C, actions]. grid: rows and columns of a picture's
    tokens."""
    config, count = model.config, grid[0] * grid[1] * cameras
    width = config.dim_model
    tokens = graph.input("image_tokens", (1, count, width))
    state = graph.input("state", (1, config.state_dim))
    with graph.scope("state"):
        projection = model.encoder_robot_state_input_proj
        joints = linear(graph, state, array(projection.weight), "project", array(projection.bias))
    latent = array(model.encoder_latent_input_proj.bias)[None]
    pictures = graph.reshape(tokens, (count, width), "pictures")
    hidden = graph.op("Concat", graph.weight(latent, "latent"), joints, pictures, name="tokens", axis=0)
    places = np.concatenate(
        [array(model.encoder_1d_feature_pos_embed.weight)] + [grid_positions(*grid, width)[0].numpy()] * cameras
    )
    for index, layer in enumerate(model.encoder.layers):
        with graph.scope(f"layer{index:02d}"):
            hidden = _encoder_layer(graph, hidden, layer, places)
    if config.pre_norm:
        hidden = layer_norm(graph, hidden, model.encoder.norm, "encoder_norm")
    asked = array(model.decoder_pos_embed.weight)
    actions = ""
    for index, layer in enumerate(model.decoder.layers):
        with graph.scope(f"decoder{index}"):
            actions = _decoder_layer(graph, actions, layer, asked, hidden, places)
    actions = layer_norm(graph, actions, model.decoder.norm, "decoder_norm")
    chunk = linear(graph, actions, array(model.action_head.weight), "action_out", array(model.action_head.bias))
    shape = (1, config.chunk_size, config.action_dim)
    graph.output(graph.reshape(chunk, shape, "batch"), "chunk", shape)


def _encoder_layer(graph: Graph, hidden: str, layer: EncoderLayer, places: Array) -> str:
    """hidden [N, D] → the same shape."""
    return _mlp(graph, _attention(graph, hidden, layer, places), layer, layer.norm2)


def _attention(graph: Graph, hidden: str, layer: EncoderLayer | DecoderLayer, places: Array) -> str:
    """A layer's attention to its own rows [N, D] → the same shape."""
    with graph.scope("attention"):
        inner = layer_norm(graph, hidden, layer.norm1, "norm") if layer.pre_norm else hidden
        mixed = self_attention(graph, inner, attention_of(layer.self_attn), places.shape, places)
    hidden = graph.op("Add", hidden, mixed, name="attention_residual")
    return hidden if layer.pre_norm else layer_norm(graph, hidden, layer.norm1, "attention_norm")


def _decoder_layer(
    graph: Graph, hidden: str, layer: DecoderLayer, places: Array, tokens: str, token_places: Array
) -> str:
    """hidden [C, D], "" before the first layer, where it is 0 → [C, D]."""
    if hidden:
        hidden = _attention(graph, hidden, layer, places)
    attention = attention_of(layer.multihead_attn)
    heads, (rows, width) = attention.heads, places.shape
    with graph.scope("cross"):
        weight, bias = attention.query
        if hidden:
            inner = layer_norm(graph, hidden, layer.norm2, "norm") if layer.pre_norm else hidden
            asked = linear(graph, inner, weight, "query", places @ weight.T + bias)
            query = heads_first(graph, asked, rows, heads, "q")
        else:
            start, inner_rows = _first_rows(layer, places)
            hidden = graph.weight(start, "start")
            fixed = (inner_rows + places) @ weight.T + bias
            query = graph.weight(fixed.reshape(rows, heads, -1).transpose(1, 0, 2), "q")
        both = np.concatenate((attention.key[0], attention.value[0]))
        shift = np.concatenate(
            (token_places @ attention.key[0].T + attention.key[1], np.tile(attention.value[1], (len(token_places), 1))),
            axis=1,
        )
        fused = linear(graph, tokens, both, "key_value", shift)
        key, value = (
            heads_first(graph, part, len(token_places), heads, name)
            for name, part in zip(("k", "v"), graph.split(fused, (width, width), axis=1))
        )
        mixed = attend(graph, query, key, value, rows, attention)
    hidden = graph.op("Add", hidden, mixed, name="cross_residual")
    if not layer.pre_norm:
        hidden = layer_norm(graph, hidden, layer.norm2, "cross_norm")
    return _mlp(graph, hidden, layer, layer.norm3)


@torch.inference_mode()
def _first_rows(layer: DecoderLayer, places: Array) -> tuple[Array, Array]:
    """Rows [C, D] behind the first decoder layer's attention to itself, from rows that are 0, and those rows as its
    attention to the tokens reads them."""
    start = torch.zeros(1, *places.shape)
    inner = layer.norm1(start) if layer.pre_norm else start
    keys = inner + torch.from_numpy(places)
    rows = start + layer.self_attn(keys, keys, inner, need_weights=False)[0]
    rows = rows if layer.pre_norm else layer.norm1(rows)
    return array(rows[0]), array((layer.norm2(rows) if layer.pre_norm else rows)[0])


def _mlp(graph: Graph, hidden: str, layer: EncoderLayer | DecoderLayer, norm: nn.LayerNorm) -> str:
    with graph.scope("mlp"):
        inner = layer_norm(graph, hidden, norm, "norm") if layer.pre_norm else hidden
        raised = linear(graph, inner, array(layer.linear1.weight), "up", array(layer.linear1.bias))
        gelu = layer.activation is nn.functional.gelu
        active = graph.op("Gelu", raised, name="gelu") if gelu else graph.op("Relu", raised, name="relu")
        lowered = linear(graph, active, array(layer.linear2.weight), "down", array(layer.linear2.bias))
    hidden = graph.op("Add", hidden, lowered, name="mlp_residual")
    return hidden if layer.pre_norm else layer_norm(graph, hidden, norm, "mlp_norm")
