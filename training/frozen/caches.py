# SPDX-License-Identifier: Apache-2.0
"""What `--cache-vision` and `--cache-prefix` ask for, attached to the frames and filled before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vla_edge.training.frozen.prefix_cache import attach_scenes, fill_scenes
from vla_edge.training.frozen.vision_cache import attach_tokens, fill_tokens, release_tower
from vla_edge.training.run_config import TrainConfig
from vla_edge.training.training_frames import Frames


def attach_caches(config: TrainConfig, policy: Any, sources: Sequence[Frames]) -> list[str]:
    """Let `sources` give what is kept instead of pictures; returns the notes that tell how much it is."""
    notes = [attach_tokens(config, policy, sources)] if config.cache_vision else []
    return notes + ([attach_scenes(config, policy, sources)] if config.cache_prefix else [])


def fill_caches(config: TrainConfig, policy: Any, sources: Sequence[Frames], device: torch.device) -> None:
    """Compute what is missing, in batches as large as training's."""
    if config.cache_vision:
        fill_tokens(policy, sources, config.batch_size, device)
    if config.cache_prefix:
        fill_scenes(policy, sources, config.batch_size, device)


def release_frozen(config: TrainConfig, policy: Any, pictures: bool) -> None:
    """Leave on disk what the caches stand for, unless `pictures` are still looked at (CRaFT's anchors)."""
    place = config.cache_prefix or config.cache_vision
    if place and not pictures:
        release_tower(policy, Path(place))
