# SPDX-License-Identifier: Apache-2.0
"""The reaching dataset as tensors in memory: pictures as small uint8, chunks for every instruction."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from vla_edge.errors import TrainingError
from vla_edge.lerobot_data.reader import Dataset
from vla_edge.policies.features import STATE
from vla_edge.policies.images import resize_with_pad
from vla_edge.policies.smolvla.policy import SmolVLAPolicy, normalize, pad_last
from vla_edge.trials.reach_data import CUBE_COLOURS, INSTRUCTIONS


@dataclass(frozen=True)
class Examples:
    """N observations; the first `training` are trained on, the others held out.

    images: uint8 [N, cameras, 3, h, w], resized and padded as the policy does. states: normalised and padded [N, S].
    chunks: normalised [N, instructions, C, actions]. token_ids int64 and token_mask bool [instructions, T].
    """

    images: Tensor
    states: Tensor
    chunks: Tensor
    token_ids: Tensor
    token_mask: Tensor
    training: int

    def pixels(self, picks: Tensor) -> Tensor:
        """The network's pictures of these observations: float32 [B, cameras, 3, h, w] in −1..1."""
        return self.images[picks].float() / 127.5 - 1


def read_examples(data: Dataset, policy: SmolVLAPolicy, held_out_scenes: int) -> Examples:
    """Decode and scale every picture once. TrainingError when the dataset is of another task or too small."""
    missing = [f"expert.{colour}" for colour in CUBE_COLOURS if f"expert.{colour}" not in data.features]
    if missing:
        raise TrainingError(f"{data.root}: no column {missing[0]}; record the dataset with vla_edge.trials.reach_data")
    if len(data.episodes) <= held_out_scenes:
        raise TrainingError(
            f"{data.root}: {len(data.episodes)} scenes, {held_out_scenes} of them held out leave none to train on; "
            "record more"
        )
    cameras = [camera.source for camera in policy.settings.cameras]
    size = policy.config.resize_imgs_with_padding
    assert size is not None
    images = torch.empty((len(data), len(cameras), 3, size[1], size[0]), dtype=torch.uint8)
    for episode in track(data.episodes, "reading pictures", console=Console(stderr=True)):
        rows = range(episode.from_index, episode.to_index)
        for slot, camera in enumerate(cameras):
            pictures = torch.from_numpy(np.stack([data.image(camera, index) for index in rows]))
            scaled = resize_with_pad(pictures.permute(0, 3, 1, 2).float(), *size)
            images[rows.start : rows.stop, slot] = scaled.round().to(torch.uint8)
    states = normalize(torch.from_numpy(data.column(STATE).copy()), policy.settings.state)
    chunks = torch.stack([torch.from_numpy(data.column(f"expert.{colour}").copy()) for colour in CUBE_COLOURS], dim=1)
    ids, mask = policy.tokenizer.encode(INSTRUCTIONS)
    used = mask.any(dim=0)
    first_held_out = data.episodes[len(data.episodes) - held_out_scenes].from_index if held_out_scenes else len(data)
    return Examples(
        images,
        pad_last(states, policy.config.max_state_dim),
        normalize(chunks, policy.settings.action_target),
        ids[:, used],
        mask[:, used],
        first_held_out,
    )
