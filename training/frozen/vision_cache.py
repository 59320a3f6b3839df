# SPDX-License-Identifier: Apache-2.0
"""`--cache-vision`: picture tokens of every frame, computed once by a frozen vision tower and read while training.

Tokens are what the connector gives, before scaling. Batches are as large as
training's, so that float32 gives the numbers the tower would have given.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from vla_edge.errors import ConfigError
from vla_edge.lerobot_data.reader import Dataset
from vla_edge.policies.images import prepare_image, to_unit
from vla_edge.policies.smolvla.policy import SmolVLAPolicy
from vla_edge.policies.smolvla.vision import tokens_per_image
from vla_edge.policies.tensor_file import save_tensors
from vla_edge.training.frozen.row_store import check_room, data_digest, fill_missing, open_store, weights_digest
from vla_edge.training.run_config import TrainConfig
from vla_edge.training.training_frames import Frames


def attach_tokens(config: TrainConfig, policy: Any, sources: Sequence[Frames]) -> str:
    """Let `sources` give tokens of `config.cache_vision` instead of pictures; returns the note that tells its size.

    Nothing is computed yet (`fill_tokens`). ConfigError: pictures are augmented, the tower trains, the disk is small.
    """
    if not isinstance(policy, SmolVLAPolicy):
        raise ConfigError("--cache-vision is for SmolVLA: its vision tower can be frozen; leave it out")
    if config.augment.most:
        raise ConfigError("--cache-vision keeps each picture's tokens once; --augment changes pictures: leave one out")
    if any(weight.requires_grad for module in tower_of(policy) for weight in module.parameters()):
        raise ConfigError("--cache-vision needs a frozen vision tower and connector; give --expert-only")
    place, size = Path(config.cache_vision), policy.config.resize_imgs_with_padding
    tower = weights_digest(tower_of(policy))
    data = {path: data_digest(Path(path)) for path in {frames.data.path for frames in sources}}
    for frames in sources:
        for key in frames.cameras:
            height, width = policy.config.resized_to or frames.dataset.features[key].shape[:2]
            rows, wide = tokens_per_image(policy.backbone, height, width), policy.backbone.text.hidden_size
            meta = {"tower": tower, "data": data[frames.data.path], "camera": key, "size": list(size) if size else None}
            frames.tokens[key] = open_store(place, meta, (len(frames.dataset), rows, wide), config.cache_type)
    total = check_room("--cache-vision", place, [store for frames in sources for store in frames.tokens.values()])
    left = sum(len(frames.tokens[key].missing(frames.indices)) for frames in sources for key in frames.cameras)
    return f"vision cache {place}: {total / 1e6:.0f} MB in {config.cache_type}, {left} pictures are left to compute"


@torch.no_grad()
def fill_tokens(policy: SmolVLAPolicy, sources: Sequence[Frames], batch_size: int, device: torch.device) -> None:
    """Compute what the caches of `sources` lack, `batch_size` pictures at a time."""
    model = policy.model.vlm_with_expert
    for frames in sources:
        for key, store in frames.tokens.items():

            def tokens(part: NDArray[np.int64], data: Dataset = frames.dataset, key: str = key) -> torch.Tensor:
                pictures = np.stack([data.frame(int(i), (key,)).images[key] for i in part])
                unit = to_unit(torch.from_numpy(pictures).to(device), key)
                return model.embed_image(prepare_image(unit, policy.config.resize_imgs_with_padding))

            fill_missing(store, frames.indices, batch_size, tokens, f"pictures of {key}")


def release_tower(policy: SmolVLAPolicy, place: Path) -> None:
    """Leave the tower's weights on disk while training: they are mapped from a file of `place`, which only writing a
    checkpoint reads."""
    digest = weights_digest(tower_of(policy))[:16]
    for name, module in zip(("tower", "connector"), tower_of(policy)):
        state = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
        file = place / f"{name}_{digest}.safetensors"
        if not file.is_file():
            save_tensors(state, file)
        module.load_state_dict(load_file(file), assign=True)


def tower_of(policy: SmolVLAPolicy) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Vision tower and connector."""
    vlm = policy.model.vlm_with_expert.vlm.model
    return vlm.vision_model, vlm.connector
