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
from vla_edge.policies.processing import ProcessorSettings
from vla_edge.policies.scaling import normalize
from vla_edge.trials.reach_data import CUBE_COLOURS


@dataclass(frozen=True)
class Examples:
    """N observations; the first `training` are trained on, the others held out.

    images: uint8 [N, cameras, 3, h, w], resized and padded as the policy does. states: normalised [N, joints]. chunks:
    normalised [N, instructions, C, actions].
    """

    images: Tensor
    states: Tensor
    chunks: Tensor
    training: int

    def picks(self, batch: int, generator: torch.Generator) -> Tensor:
        """Indices int64 [batch] of training observations."""
        return torch.randint(0, self.training, (batch,), generator=generator)


def read_examples(
    data: Dataset, settings: ProcessorSettings, size: tuple[int, int] | None, held_out_scenes: int
) -> Examples:
    """Decode every picture once and scale it to `size` (width, height), None: as it is. TrainingError when the dataset
    is of another task or too small."""
    missing = [f"expert.{colour}" for colour in CUBE_COLOURS if f"expert.{colour}" not in data.features]
    if missing:
        raise TrainingError(f"{data.root}: no column {missing[0]}; record the dataset with vla_edge.trials.reach_data")
    if len(data.episodes) <= held_out_scenes:
        raise TrainingError(
            f"{data.root}: {len(data.episodes)} scenes, {held_out_scenes} of them held out leave none to train on; "
            "record more"
        )
    cameras = [camera.source for camera in settings.cameras]
    width, height = size or (settings.cameras[0].width, settings.cameras[0].height)
    images = torch.empty((len(data), len(cameras), 3, height, width), dtype=torch.uint8)
    for episode in track(data.episodes, "reading pictures", console=Console(stderr=True)):
        rows = range(episode.from_index, episode.to_index)
        for slot, camera in enumerate(cameras):
            pictures = torch.from_numpy(np.stack([data.image(camera, index) for index in rows]))
            scaled = resize_with_pad(pictures.permute(0, 3, 1, 2).float(), width, height)
            images[rows.start : rows.stop, slot] = scaled.round().to(torch.uint8)
    states = normalize(torch.from_numpy(data.column(STATE).copy()), settings.state)
    chunks = torch.stack([torch.from_numpy(data.column(f"expert.{colour}").copy()) for colour in CUBE_COLOURS], dim=1)
    first_held_out = data.episodes[len(data.episodes) - held_out_scenes].from_index if held_out_scenes else len(data)
    return Examples(images, states, normalize(chunks, settings.action_target), first_held_out)
