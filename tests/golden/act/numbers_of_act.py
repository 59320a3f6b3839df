# SPDX-License-Identifier: Apache-2.0
"""Weights and inputs of the golden ACT policies, made from names alone, so that no weights are stored. No torch."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

COMMON = {"chunk_size": 20, "n_action_steps": 20, "dim_model": 64, "n_heads": 4, "dim_feedforward": 96, "latent_dim": 8}
POLICIES: dict[str, dict[str, Any]] = {
    "resnet18": {"n_encoder_layers": 2, "n_vae_encoder_layers": 2},
    "pre-norm": {"pre_norm": True, "n_decoder_layers": 2, "feedforward_activation": "gelu", "n_vae_encoder_layers": 1},
    "no-vae": {"use_vae": False, "n_encoder_layers": 1},
    "dilated": {"vision_backbone": "resnet50", "replace_final_stride_with_dilation": True, "n_encoder_layers": 1},
}
"""What differs from `COMMON`, by name."""
CAMERAS = {"front": (96, 128), "wrist": (64, 96)}
JOINTS = 6
BATCH = 3


def numbers(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The same float32 numbers for the same name everywhere."""
    return np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)


def weight(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A tensor of the network: norms near 1, variances positive, maps scaled by their inputs."""
    made = numbers(name, shape)
    if name.endswith("running_var"):
        return np.float32(1) + np.float32(0.2) * np.abs(made)
    if len(shape) == 1:
        return np.float32(0.05) * made + np.float32(name.endswith("weight"))
    return (made / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def inputs() -> dict[str, NDArray[Any]]:
    """One batch: normalised pictures, joints, actions, their end, and the latent's noise."""
    is_pad = np.zeros((BATCH, COMMON["chunk_size"]), bool)
    is_pad[1, 12:] = True
    return {
        **{camera: numbers(camera, (BATCH, 3, *size)) for camera, size in CAMERAS.items()},
        "state": numbers("state", (BATCH, JOINTS)),
        "actions": numbers("actions", (BATCH, COMMON["chunk_size"], JOINTS)),
        "is_pad": is_pad,
        "noise": numbers("noise", (BATCH, COMMON["latent_dim"])),
    }


SIZE = (96, 128)
"""Of all cameras of the folders."""
FOLDERS: dict[str, dict[str, Any]] = {
    **POLICIES,
    "ensemble": {"temporal_ensemble_coeff": 0.01, "n_action_steps": 1, "n_encoder_layers": 1},
    "scaled": {"normalization_mapping": {"VISUAL": "MIN_MAX", "STATE": "IDENTITY", "ACTION": "MIN_MAX"}},
}
STEPS = 5


def statistics() -> dict[str, dict[str, NDArray[np.float32]]]:
    """Of the made-up data, by feature and name."""
    made: dict[str, dict[str, NDArray[np.float32]]] = {}
    shapes = {"observation.state": (JOINTS,), "action": (JOINTS,)}
    for feature, shape in {**shapes, **{f"observation.images.{c}": (3, 1, 1) for c in CAMERAS}}.items():
        spread = np.float32(0.2) + np.abs(numbers(f"{feature}.std", shape))
        mean = np.float32(0.5) + np.float32(0.1) * numbers(f"{feature}.mean", shape)
        made[feature] = {"mean": mean, "std": spread, "min": mean - spread, "max": mean + spread}
    return made


def observations() -> list[dict[str, NDArray[Any]]]:
    """Raw observations one after the other, under LeRobot's names."""
    random = np.random.default_rng(7)
    return [
        {
            **{f"observation.images.{c}": random.integers(0, 256, (*SIZE, 3), dtype=np.uint8) for c in CAMERAS},
            "observation.state": random.standard_normal(JOINTS).astype(np.float32),
        }
        for _ in range(STEPS)
    ]


DINOV2_WIDTH = 128
DINOV2_SIZES = {(42, 56): 1, (70, 28): 1, (224, 224): 5, (518, 518): 25}
"""Pictures of the golden DINOv2, and every how many of its rows are kept; the last has the size of its table."""


def dinov2_weight(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A tensor of the golden DINOv2: places as large as patches, scales that matter."""
    if name.endswith(("position_embeddings", "cls_token")):
        return (np.float32(0.5) * numbers(name, shape)).astype(np.float32)
    if name.endswith("lambda1"):
        return (np.float32(0.5) + np.float32(0.2) * numbers(name, shape)).astype(np.float32)
    return weight(name, shape)
