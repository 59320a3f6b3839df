# SPDX-License-Identifier: Apache-2.0
"""`--cache-prefix`: keys and values of pictures and instruction of every frame, computed once by a frozen
vision-language model and read while training. For small sets, CRaFT's anchors, delta training and distillation.

A frame's rows are its pictures' and its instruction's, padded to the longest that the tokenizer gives, for every text
layer the keys and then the values. Batches are as large as training's, so that float32 gives the numbers the model
would have given where the instruction is padded alike, and the same but for rounding elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray
from torch import Tensor

from vla_edge.bundle import file_sha256
from vla_edge.errors import ConfigError
from vla_edge.policies.features import STATE
from vla_edge.policies.smolvla.flow import Prefix
from vla_edge.policies.smolvla.policy import TOKEN_MASK, TOKENS, SmolVLAPolicy
from vla_edge.policies.smolvla.vision import tokens_per_image
from vla_edge.training.craft.anchors import AnchorCache
from vla_edge.training.frozen.row_store import check_room, data_digest, fill_missing, open_store, weights_digest
from vla_edge.training.run_config import TrainConfig
from vla_edge.training.training_frames import Frames, KeptScenes, observation_batch, to_device


def attach_scenes(config: TrainConfig, policy: Any, sources: Sequence[Frames]) -> str:
    """Let `sources` give scenes of `config.cache_prefix` instead of pictures; returns the note that tells its size.

    Nothing is computed yet (`fill_scenes`). ConfigError: pictures are augmented, the model trains, the disk is small.
    """
    if not isinstance(policy, SmolVLAPolicy):
        raise ConfigError("--cache-prefix is for SmolVLA: its vision-language model can be frozen; leave it out")
    if config.augment.most:
        raise ConfigError("--cache-prefix keeps each scene once; --augment changes pictures: leave one out")
    if config.cache_vision:
        raise ConfigError("--cache-prefix keeps what comes after the tokens of --cache-vision; give one of them")
    if any(weight.requires_grad for weight in policy.model.vlm_with_expert.vlm.parameters()):
        raise ConfigError("--cache-prefix needs a frozen vision-language model; give --expert-only, without LoRA in it")
    place, meta = Path(config.cache_prefix), {"policy": policy_digest(policy)}
    data = {path: data_digest(Path(path)) for path in {frames.data.path for frames in sources}}
    for frames in sources:
        present = [camera.name for camera in policy.settings.cameras if camera.source in frames.cameras]
        mask = picture_mask(policy, present)
        longest = longest_task(policy, list(frames.dataset.tasks.values()))
        tasks = {str(number): text for number, text in sorted(frames.dataset.tasks.items())}
        made_of = {
            **meta,
            "data": data[frames.data.path],
            "cameras": [[camera.name, camera.source] for camera in policy.settings.cameras],
            "tasks": tasks,
        }
        shape = len(frames.dataset), *scene_shape(policy, len(mask) + longest)
        frames.scenes = KeptScenes(open_store(place, made_of, shape, config.cache_type), mask, longest)
    stores = [frames.scenes.store for frames in sources if frames.scenes]
    total = check_room("--cache-prefix", place, stores)
    left = sum(len(store.missing(frames.indices)) for frames, store in zip(sources, stores))
    return f"prefix cache {place}: {total / 1e6:.0f} MB in {config.cache_type}, {left} scenes are left to compute"


@torch.no_grad()
def fill_scenes(policy: SmolVLAPolicy, sources: Sequence[Frames], batch_size: int, device: torch.device) -> None:
    """Compute what the caches of `sources` lack, `batch_size` frames at a time."""
    for frames in sources:
        if frames.scenes is not None:

            def rows(part: NDArray[np.int64], frames: Frames = frames, scenes: KeptScenes = frames.scenes) -> Tensor:
                batch = observation_batch([frames.pictured(int(index)) for index in part], policy)
                return kept_rows(scenes, policy, to_device(batch, device))

            fill_missing(frames.scenes.store, frames.indices, batch_size, rows, f"scenes of {frames.data.name}")


class KeptAnchors:
    """The scenes of CRaFT's anchors in `place`, instead of running the frozen model on their pictures at each retention
    gradient. `batch_size`: anchors a gradient."""

    def __init__(self, cache: AnchorCache, policy: SmolVLAPolicy, place: Path, kind: str, batch_size: int) -> None:
        self._cache, self._policy, self._size = cache, policy, batch_size
        row = cache.observation([0])
        mask = picture_mask(policy, [name for name in policy.config.pictures if name in row])
        longest = row[TOKENS].shape[1]
        meta = {"policy": policy_digest(policy), "anchors": cache.digest}
        shape = len(cache), *scene_shape(policy, len(mask) + longest)
        self._scenes = KeptScenes(open_store(place, meta, shape, kind), mask, longest)
        check_room("--cache-prefix", place, [self._scenes.store])

    @torch.no_grad()
    def fill(self, device: torch.device) -> None:
        """Compute what is missing."""

        def rows(part: NDArray[np.int64]) -> Tensor:
            batch = self._cache.observation([int(row) for row in part])
            return kept_rows(self._scenes, self._policy, to_device(batch, device))

        fill_missing(self._scenes.store, np.arange(len(self._cache)), self._size, rows)

    def observation(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """The observations of some anchors with their scenes in place of pictures."""
        batch = {name: self._cache.stored(f"input.{name}", rows) for name in (STATE, TOKENS, TOKEN_MASK)}
        kept = np.stack([self._scenes.store.read(row) for row in rows])
        return batch | self._scenes.batch(kept, batch[TOKEN_MASK], "right")


def kept_rows(scenes: KeptScenes, policy: SmolVLAPolicy, batch: dict[str, Tensor]) -> Tensor:
    """What the store keeps of a batch: [B, layers·2·rows, width], the instruction padded to the longest."""
    found = policy.model.scene_of(policy.prepare(batch))
    rows = rows_of_scene(found)
    pad = scenes.longest + len(scenes.mask) - rows.shape[3]
    if policy.tokenizer.settings.padding_side == "left" and pad:
        pictures = len(scenes.mask)
        rows = torch.cat((rows[:, :, :, :pictures], functional.pad(rows[:, :, :, pictures:], (0, 0, pad, 0))), dim=3)
    else:
        rows = functional.pad(rows, (0, 0, 0, pad))
    return rows.flatten(1, 3)


def rows_of_scene(scene: Prefix) -> Tensor:
    """[B, layers, 2, rows, kv_heads·head_dim], keys then values."""
    return torch.stack([torch.stack([kv.key.flatten(2), kv.value.flatten(2)], dim=1) for kv in scene.cache], dim=1)


def picture_mask(policy: SmolVLAPolicy, present: Sequence[str]) -> NDArray[np.bool_]:
    """Which rows in front of the instruction are valid, as `embed_prefix` lays them out for these cameras."""
    config, special = policy.config, policy.model.special
    height, width = config.resized_to or config.cameras[0].shape[1:]
    start, end = (len(special.start), len(special.end)) if config.add_image_special_tokens else (0, 0)
    picture = tokens_per_image(policy.backbone, height, width)
    empty = min(config.empty_cameras, len(config.pictures) - len(present))
    slots = [True] * len(present) + [False] * empty
    return np.concatenate([np.array([True] * start + [seen] * picture + [True] * end) for seen in slots])


def longest_task(policy: SmolVLAPolicy, tasks: Sequence[str]) -> int:
    """Token rows that a batch of the data can have."""
    return int(policy.tokenizer.encode(list(tasks))[0].shape[1])


def scene_shape(policy: SmolVLAPolicy, rows: int) -> tuple[int, int]:
    """(rows, width) of one frame in the store."""
    text = policy.backbone.text
    return policy.model.vlm_with_expert.plan.layers * 2 * rows, text.kv_heads * text.head_dim


def policy_digest(policy: SmolVLAPolicy) -> dict[str, Any]:
    """Everything that decides a scene but the data."""
    tokenizer, config = policy.tokenizer.settings, policy.config
    return {
        "model": weights_digest([policy.model.vlm_with_expert.vlm.model]),
        "size": list(config.resize_imgs_with_padding or ()),
        "special": [list(policy.model.special.start), list(policy.model.special.end), config.empty_cameras],
        "tokenizer": file_sha256(tokenizer.folder / "tokenizer.json"),
        "tokens": [tokenizer.max_length, tokenizer.padding, tokenizer.padding_side, tokenizer.append_newline],
    }
