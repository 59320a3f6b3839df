# SPDX-License-Identifier: Apache-2.0
"""The `expert` graph, one Euler step of the flow, and `delta` with `delta_kv`, the correction of a queued chunk.

Everything that does not depend on the noisy actions is out of the step: the
time half of `action_time_mlp_in` is a table per number of steps, the action
half has `action_in_proj` multiplied in, and cross-attending layers read keys
and values that `prefix` and `state` have projected.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from vla_edge.export.graph import Graph
from vla_edge.export.layers import Array, array
from vla_edge.export.smolvla import attention, layers
from vla_edge.export.smolvla.attention import KeyValue
from vla_edge.policies.smolvla.config import LayerPlan
from vla_edge.policies.smolvla.delta import DELTA_TIME
from vla_edge.policies.smolvla.expert import Expert
from vla_edge.policies.smolvla.flow import FlowMatching, time_waves


@dataclass(frozen=True)
class ActionPath:
    """Actions in, velocity out: the projections around one expert."""

    expert: Expert
    in_proj: nn.Linear
    time_mlp_in: nn.Linear
    time_mlp_out: nn.Linear
    out_proj: nn.Linear

    def folded(self) -> Array:
        """`in_proj` inside the action half of `time_mlp_in`: [E, A]."""
        half = self.in_proj.out_features
        product = self.time_mlp_in.weight.detach().double()[:, :half] @ self.in_proj.weight.detach().double()
        return array(product)

    def time_bias(self, times: Array, min_period: float, max_period: float) -> Array:
        """What `time_mlp_in` adds at each of `times` [n], biases included: float32 [n, E]."""
        half = self.in_proj.out_features
        weight, bias = self.time_mlp_in.weight.detach().double(), self.time_mlp_in.bias.detach().double()
        waves = time_waves(torch.from_numpy(times), half, min_period, max_period).float().double()
        return array(waves @ weight[:, half:].T + weight[:, :half] @ self.in_proj.bias.detach().double() + bias)


def action_path(model: FlowMatching, kind: str = "") -> ActionPath:
    """The path of the flow, or with "delta_" that of the delta expert."""
    names = ("in_proj", "time_mlp_in", "time_mlp_out", "out_proj")
    expert = model.vlm_with_expert.delta_expert if kind else model.vlm_with_expert.lm_expert
    return ActionPath(expert, *(getattr(model, f"{kind}action_{name}") for name in names))


def build_expert(graph: Graph, model: FlowMatching, rows: int, chunk: int) -> None:
    """x, time_bias, dt, target, weights, mask, first_position, keys and values → x_next = tied + dt · velocity(tied),
    where tied = x + weights · (target − x). `rows` is R, `chunk` is C; time_bias [C, E], dt and weights [C, 1] are each
    row's own."""
    path, dims = action_path(model), model.config.max_action_dim
    noisy = graph.input("x", (1, chunk, dims))
    time_bias = graph.input("time_bias", (chunk, path.in_proj.out_features))
    dt = graph.input("dt", (chunk, 1))
    target, weights = graph.input("target", (1, chunk, dims)), graph.input("weights", (chunk, 1))
    flat, aim = graph.reshape(noisy, (chunk, dims), "x_rows"), graph.reshape(target, (chunk, dims), "target_rows")
    with graph.scope("tie"):
        way = graph.op("Sub", aim, flat, name="way")
        tied = graph.op("Add", flat, graph.op("Mul", weights, way, name="part"), name="tied")
    velocity = _velocity(graph, model, path, tied, time_bias, (rows, chunk), "e")
    moved = graph.op("Add", tied, graph.op("Mul", velocity, dt, name="euler/scaled"), name="euler/moved")
    graph.output(graph.reshape(moved, (1, chunk, dims), "x_batch"), "x_next", (1, chunk, dims))


def build_delta(graph: Graph, model: FlowMatching, rows: int) -> None:
    """chunk, mask, first_position, keys and values → corrected = chunk + the delta expert's velocity. `rows` is R."""
    path, config = action_path(model, "delta_"), model.config
    shape = (1, config.chunk_size, config.max_action_dim)
    flat = graph.reshape(graph.input("chunk", shape), shape[1:], "chunk_rows")
    bias = path.time_bias(np.array([DELTA_TIME], np.float32), config.min_period, config.max_period)
    velocity = _velocity(graph, model, path, flat, graph.weight(bias, "time_bias"), (rows, config.chunk_size), "d")
    graph.output(
        graph.reshape(graph.op("Add", flat, velocity, name="corrected_rows"), shape, "corrected_batch"),
        "corrected",
        shape,
    )


def build_delta_kv(graph: Graph, model: FlowMatching, rows: int) -> None:
    """kLL, vLL of the cross-attending layers → dkLL, dvLL, the delta expert's own keys and values. `rows` is R."""
    heads = attention.heads_of(model.vlm_with_expert.vlm.model.text_model)
    shape = (heads.kv, rows, heads.width)
    for index, number in cross_layers(model.vlm_with_expert.plan):
        cache = KeyValue(*(graph.input(f"{kind}{index:02d}", shape) for kind in "kv"))
        with graph.scope(f"delta{index:02d}"):
            own = attention.project_cache(
                graph, cache, model.vlm_with_expert.delta_expert.layers[number].self_attn, rows, heads
            )
        graph.output(own.key, f"dk{index:02d}", shape)
        graph.output(own.value, f"dv{index:02d}", shape)


def cross_layers(plan: LayerPlan) -> list[tuple[int, int]]:
    """(policy layer, expert layer) of the expert's cross-attending layers."""
    return [(index, number) for index, number in enumerate(plan.expert_of) if number is not None and plan.cross[index]]


def self_layers(plan: LayerPlan) -> list[tuple[int, int]]:
    """(policy layer, expert layer) of the expert's self-attending layers."""
    return [
        (index, number) for index, number in enumerate(plan.expert_of) if number is not None and not plan.cross[index]
    ]


def _velocity(
    graph: Graph,
    model: FlowMatching,
    path: ActionPath,
    actions: str,
    time_bias: str,
    sizes: tuple[int, int],
    cross_prefix: str,
) -> str:
    """actions [C, A] → velocity [C, A]; declares the inputs mask, first_position and all keys and values. sizes: R and
    C."""
    plan, (rows, chunk) = model.vlm_with_expert.plan, sizes
    heads = attention.heads_of(model.vlm_with_expert.vlm.model.text_model)
    mask, first = graph.input("mask", (rows,)), graph.input("first_position", (1,))
    with graph.scope("embed"):
        moved = layers.linear(graph, actions, path.folded(), "actions")
        timed = layers.silu(graph, graph.op("Add", moved, time_bias, name="timed"))
        hidden = layers.linear(
            graph, timed, array(path.time_mlp_out.weight), "time_mlp_out", array(path.time_mlp_out.bias)
        )
    bias = attention.mask_bias(graph, mask, rows)
    if self_layers(plan):
        causal_bias = attention.own_rows_bias(graph, bias, np.tri(chunk, dtype=np.float32), rows, heads)
        positions = graph.op("Add", first, graph.constant(np.arange(chunk)), name="positions")
        angles = attention.rope_angles(graph, positions, chunk, heads)
    if cross_layers(plan):
        from_zero = attention.constant_angles(graph, chunk, heads)
    for index, number in enumerate(plan.expert_of):
        if number is None:
            continue
        layer = path.expert.layers[number]
        kind = cross_prefix if plan.cross[index] else ""
        cache = KeyValue(*(graph.input(f"{kind}{part}{index:02d}", (heads.kv, rows, heads.width)) for part in "kv"))
        with graph.scope(f"layer{index:02d}"):
            normed = layers.rms_norm(graph, hidden, layer.input_layernorm, "input_norm")
            with graph.scope("attention"):
                if plan.cross[index]:
                    queries = attention.query(graph, normed, layer.self_attn, from_zero, chunk, heads)
                    mixed = attention.attend(graph, queries, cache, bias, chunk, heads)
                else:
                    queries, own = attention.query_key_value(graph, normed, layer.self_attn, angles, chunk, heads)
                    mixed = attention.attend(
                        graph, queries, attention.join(graph, cache, own), causal_bias, chunk, heads
                    )
            hidden = layers.finish(graph, hidden, mixed, layer)
    normed = layers.rms_norm(graph, hidden, path.expert.norm, "norm")
    return layers.linear(graph, normed, array(path.out_proj.weight), "action_out", array(path.out_proj.bias))
