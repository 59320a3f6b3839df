# SPDX-License-Identifier: Apache-2.0
"""ACT in PyTorch: a network for each picture, a transformer from picture and joint tokens to a chunk of actions."""

from vla_edge.policies.families import Preset, Scratch

FAMILY_SCRATCH = Scratch(
    "torchvision's file of its ResNet or transformers' of its DINOv2, or a folder or Hub id with model.safetensors "
    "(default: random weights, which need more data)",
    Preset(8, 100_000, 1e-5, (0.9, 0.999), 1e-4, 0, 100_000, 1e-5),
)
