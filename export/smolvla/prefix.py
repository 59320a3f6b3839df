# SPDX-License-Identifier: Apache-2.0
"""The `prefix` and `state` graphs: the text model over pictures and language, and over the state's one row.

No other prefix row sees the state's row, so the cut between the two is exact
(docs/policy.md §2). Of the last text layer only keys and values are read, except by
the CLS rows. Key and value outputs have more rows than the prefix, zero here: the
first is filled by the runtime with the state's, the others are padding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vla_edge.export.graph import Graph
from vla_edge.export.layers import Array, array
from vla_edge.export.smolvla import attention, layers
from vla_edge.export.smolvla.attention import Angles, Heads, KeyValue
from vla_edge.policies.smolvla.flow import FlowMatching
from vla_edge.policies.smolvla.text import Layer


@dataclass(frozen=True, slots=True)
class Rows:
    """How the prefix is made up: slots of `tokens` picture rows with their special rows around, then language."""

    slots: int
    tokens: int
    start: int
    end: int
    language: int

    @property
    def slot(self) -> int:
        """Rows of one slot."""
        return self.start + self.tokens + self.end

    @property
    def count(self) -> int:
        """P: all rows without the state's."""
        return self.slots * self.slot + self.language

    def pictures(self) -> Array:
        """float32 [P]: 1 at the rows of pictures."""
        slot = np.zeros(self.slot, np.float32)
        slot[self.start : self.start + self.tokens] = 1.0
        return np.concatenate((np.tile(slot, self.slots), np.zeros(self.language, np.float32)))


def build_prefix(graph: Graph, model: FlowMatching, rows: Rows, keys: int, with_cls: bool) -> None:
    """image_tokens, token_ids, mask, positions → kLL and vLL of each text layer, ekLL and evLL of each cross-attending
    expert layer, each of `keys` rows, pooled, and cls when `with_cls`. Shapes: docs/design.md."""
    text = model.vlm_with_expert.vlm.model.text_model
    heads, count = attention.heads_of(text), rows.count
    hidden = _embed(graph, model, rows)
    mask, positions = graph.input("mask", (count,)), graph.input("positions", (count,))
    bias = attention.mask_bias(graph, mask, count)
    angles = attention.rope_angles(graph, positions, count, heads)
    caches: list[KeyValue] = []
    for index, layer in enumerate(text.layers[:-1]):
        with graph.scope(f"layer{index:02d}"):
            queries, cache = _attention_inputs(graph, hidden, layer, angles, count, heads)
            with graph.scope("attention"):
                mixed = attention.attend(graph, queries, cache, bias, count, heads)
            hidden = layers.finish(graph, hidden, mixed, layer)
        caches.append(cache)
    _pool(graph, hidden, mask, rows, text.embed_tokens.embedding_dim)
    caches.append(_last_layer(graph, model, hidden, angles, count, heads))
    zero = graph.constant(np.zeros((heads.kv, keys - count, heads.width)))
    for name, value in _named_caches(graph, model, caches, range(len(caches)), count, heads):
        padded = graph.op("Concat", value, zero, name=f"state_row/{name}", axis=1)
        graph.output(padded, name, (heads.kv, keys, heads.width))
    if with_cls:
        _observe(graph, model, caches, bias, count, heads)


def build_state(graph: Graph, model: FlowMatching, rows: int, keys: int, every_layer: bool) -> None:
    """state, position, mask, kLL and vLL of the layers before the last → the state's row of every key and value the
    expert reads (of all layers when `every_layer`). `rows` is P, `keys` R. Shapes: docs/design.md."""
    text = model.vlm_with_expert.vlm.model.text_model
    heads, plan = attention.heads_of(text), model.vlm_with_expert.plan
    state = graph.input("state", (1, model.config.max_state_dim))
    position, mask = graph.input("position", (1,)), graph.input("mask", (rows,))
    hidden = layers.linear(graph, state, array(model.state_proj.weight), "state_proj", array(model.state_proj.bias))
    angles = attention.rope_angles(graph, position, 1, heads)
    sees_itself = np.ones((1, 1), np.float32)
    caches: list[KeyValue] = []
    if len(text.layers) > 1:
        bias = attention.own_rows_bias(graph, attention.mask_bias(graph, mask, rows), sees_itself, rows, heads)
    for index, layer in enumerate(text.layers[:-1]):
        shape = (heads.kv, keys, heads.width)
        buffers = [graph.input(f"{kind}{index:02d}", shape) for kind in "kv"]
        with graph.scope(f"layer{index:02d}"):
            queries, cache = _attention_inputs(graph, hidden, layer, angles, 1, heads)
            with graph.scope("attention"):
                # Row P of the buffers is the previous state's; it is cut off, not masked: 0 · NaN is NaN.
                earlier = KeyValue(*(graph.slice(value, 1, 0, rows, "earlier") for value in buffers))
                mixed = attention.attend(graph, queries, attention.join(graph, earlier, cache), bias, 1, heads)
            hidden = layers.finish(graph, hidden, mixed, layer)
        caches.append(cache)
    caches.append(_last_layer(graph, model, hidden, angles, 1, heads))
    wanted = (
        range(len(caches))
        if every_layer
        else [index for index, expert in enumerate(plan.expert_of) if expert is not None and not plan.cross[index]]
    )
    for name, value in _named_caches(graph, model, caches, wanted, 1, heads):
        graph.output(value, f"state_{name}", (heads.kv, 1, heads.width))


def _embed(graph: Graph, model: FlowMatching, rows: Rows) -> str:
    """Picture rows as they come, special rows unscaled, language scaled by √H → [P, H]."""
    table = array(model.vlm_with_expert.vlm.model.text_model.embed_tokens.weight)
    width = table.shape[1]
    pictures = graph.input("image_tokens", (1, rows.slots * rows.tokens, width))
    token_ids = graph.input("token_ids", (1, rows.language), "int64")
    with graph.scope("embed"):
        shape: tuple[int, ...] = (rows.slots, rows.tokens, width)
        slots = graph.reshape(pictures, shape, "slots")
        if rows.start or rows.end:
            start, end = (
                np.tile(table[list(ids)][None], (rows.slots, 1, 1)) for ids in (model.special.start, model.special.end)
            )
            parts = (graph.weight(start, "image_start"), slots, graph.weight(end, "image_end"))
            slots = graph.op("Concat", *parts, name="with_special", axis=1)
        seen = graph.reshape(slots, (rows.slots * rows.slot, width), "pictures")
        scaled = graph.weight(table * np.float32(width**0.5), "tokens.weight")
        state_rows = graph.reshape(
            graph.op("Gather", scaled, token_ids, name="tokens", axis=0), (rows.language, width), "language"
        )
        return graph.op("Concat", seen, state_rows, name="rows", axis=0)


def _attention_inputs(
    graph: Graph, hidden: str, layer: Layer, angles: Angles, rows: int, heads: Heads
) -> tuple[str, KeyValue]:
    normed = layers.rms_norm(graph, hidden, layer.input_layernorm, "input_norm")
    with graph.scope("attention"):
        return attention.query_key_value(graph, normed, layer.self_attn, angles, rows, heads)


def _last_layer(graph: Graph, model: FlowMatching, hidden: str, angles: Angles, rows: int, heads: Heads) -> KeyValue:
    text = model.vlm_with_expert.vlm.model.text_model
    with graph.scope(f"layer{len(text.layers) - 1:02d}"):
        normed = layers.rms_norm(graph, hidden, text.layers[-1].input_layernorm, "input_norm")
        with graph.scope("attention"):
            return attention.key_value(graph, normed, text.layers[-1].self_attn, angles, rows, heads)


def _named_caches(
    graph: Graph, model: FlowMatching, caches: list[KeyValue], plain: range | list[int], rows: int, heads: Heads
) -> Iterator[tuple[str, str]]:
    """(name, value) of the text model's keys and values of layers `plain`, then the cross-attending expert layers'
    own."""
    for index in plain:
        yield f"k{index:02d}", caches[index].key
        yield f"v{index:02d}", caches[index].value
    plan, expert = model.vlm_with_expert.plan, model.vlm_with_expert.lm_expert
    for index, number in enumerate(plan.expert_of):
        if number is not None and plan.cross[index]:
            with graph.scope(f"expert{index:02d}"):
                own = attention.project_cache(graph, caches[index], expert.layers[number].self_attn, rows, heads)
            yield f"ek{index:02d}", own.key
            yield f"ev{index:02d}", own.value


def _pool(graph: Graph, hidden: str, mask: str, rows: Rows, width: int) -> None:
    """pooled [H]: the mean over valid picture rows of what enters the last text layer; zero when no picture is
    there."""
    with graph.scope("pooled"):
        wanted = graph.op("Mul", mask, graph.constant(rows.pictures()), name="wanted")
        row = graph.reshape(wanted, (1, rows.count), "row")
        total = graph.op("MatMul", row, hidden, name="total")
        number = graph.op("ReduceSum", row, graph.constant([1], "int64"), name="number", keepdims=1)
        mean = graph.op("Div", total, graph.op("Max", number, graph.constant(1.0), name="at_least_one"), name="mean")
        graph.output(graph.reshape(mean, (width,), "flat"), "pooled", (width,))


def _observe(graph: Graph, model: FlowMatching, caches: list[KeyValue], bias: str, rows: int, heads: Heads) -> None:
    """cls [tokens, E]: read-only rows at position 0 that see the prefix and themselves, through all layers."""
    text, head = model.vlm_with_expert.vlm.model.text_model, model.obs_cls_proj
    tokens = model.pre_cls_param.shape[1]
    with graph.scope("cls"):
        hidden = graph.weight(array(model.pre_cls_param)[0], "tokens")
        own_bias = attention.own_rows_bias(graph, bias, np.eye(tokens, dtype=np.float32), rows, heads)
        start = attention.constant_angles(graph, 1, heads)
        for index, layer in enumerate(text.layers):
            with graph.scope(f"layer{index:02d}"):
                normed = layers.rms_norm(graph, hidden, layer.input_layernorm, "input_norm")
                with graph.scope("attention"):
                    if index + 1 < len(text.layers):
                        queries, own = attention.query_key_value(graph, normed, layer.self_attn, start, tokens, heads)
                    else:
                        queries = attention.query(graph, normed, layer.self_attn, start, tokens, heads)
                        own = attention.key_value(graph, normed, layer.self_attn, start, tokens, heads)
                    mixed = attention.attend(
                        graph, queries, attention.join(graph, caches[index], own), own_bias, tokens, heads
                    )
                hidden = layers.finish(graph, hidden, mixed, layer)
        normed = layers.rms_norm(graph, hidden, text.norm, "norm")
        raised = layers.linear(graph, normed, array(head.fc1.weight), "project_in", array(head.fc1.bias))
        active = graph.op("Relu", raised, name="relu")
        projected = layers.linear(graph, active, array(head.fc2.weight), "project_out", array(head.fc2.bias))
    graph.output(projected, "cls", (tokens, head.fc2.out_features))
