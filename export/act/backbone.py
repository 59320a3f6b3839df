# SPDX-License-Identifier: Apache-2.0
"""The `backbone` graph: one camera's normalised picture to its tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from vla_edge.export.act.dinov2 import build_dinov2
from vla_edge.export.graph import Graph
from vla_edge.export.layers import array, linear
from vla_edge.policies.act.dinov2 import DINOv2
from vla_edge.policies.act.network import ACT
from vla_edge.policies.act.resnet import Basic, FrozenBatchNorm, ResNet


def build_backbone(graph: Graph, model: ACT, size: tuple[int, int]) -> None:
    """pixels [1, 3, height, width], normalised → tokens [1, N, D], row by row. `size` is (height, width).

    A batch norm with fixed statistics is a scale and a shift a channel: both go into the convolution before it.
    """
    pixels, net = graph.input("pixels", (1, 3, *size)), model.backbone
    grid = net.grid(*size)
    width, count = model.config.dim_model, grid[0] * grid[1]
    if isinstance(net, DINOv2):
        rows, projection = build_dinov2(graph, pixels, net, grid), model.encoder_img_feat_input_proj
        weight = array(projection.weight).reshape(width, -1)
        rows = linear(graph, rows, weight, "project", array(projection.bias))
    else:
        hidden = _conv(graph, _resnet(graph, pixels, net), model.encoder_img_feat_input_proj, None, "project")
        rows = graph.op("Transpose", graph.reshape(hidden, (width, count), "flat"), name="rows", perm=[1, 0])
    graph.output(graph.reshape(rows, (1, count, width), "batch"), "tokens", (1, count, width))


def _resnet(graph: Graph, pixels: str, net: ResNet) -> str:
    with graph.scope("stem"):
        hidden = graph.op("Relu", _conv(graph, pixels, net.conv1, net.bn1, "conv1"), name="relu")
        hidden = graph.op("MaxPool", hidden, name="pool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for stage in range(1, 5):
        for index, block in enumerate(getattr(net, f"layer{stage}")):
            with graph.scope(f"stage{stage}/block{index}"):
                hidden = _block(graph, hidden, block)
    return hidden


def _block(graph: Graph, hidden: str, block: Any) -> str:
    """Convolutions beside a shortcut; ReLU behind all but the last, and behind the sum."""
    last = 2 if isinstance(block, Basic) else 3
    inner = hidden
    for index in range(1, last + 1):
        inner = _conv(graph, inner, getattr(block, f"conv{index}"), getattr(block, f"bn{index}"), f"conv{index}")
        if index < last:
            inner = graph.op("Relu", inner, name=f"relu{index}")
    if block.downsample is not None:
        hidden = _conv(graph, hidden, block.downsample[0], block.downsample[1], "shortcut")
    return graph.op("Relu", graph.op("Add", inner, hidden, name="sum"), name="relu")


def _conv(graph: Graph, value: str, conv: nn.Conv2d, norm: FrozenBatchNorm | None, name: str) -> str:
    weight = array(conv.weight)
    bias = None if conv.bias is None else array(conv.bias)
    if norm is not None:
        scale = array(norm.weight) / np.sqrt(array(norm.running_var) + np.float32(1e-5))
        weight, bias = weight * scale[:, None, None, None], array(norm.bias) - array(norm.running_mean) * scale
    assert bias is not None
    tensors = (graph.weight(weight, f"{name}.weight"), graph.weight(bias, f"{name}.bias"))
    pads, dilations = list(conv.padding) * 2, list(conv.dilation)
    kernel, strides = list(conv.kernel_size), list(conv.stride)
    return graph.op(
        "Conv", value, *tensors, name=name, kernel_shape=kernel, strides=strides, pads=pads, dilations=dilations
    )
