# SPDX-License-Identifier: Apache-2.0
"""Frames of one or several datasets as raw samples, and samples as training batches.

A sample is numpy straight from the dataset; `collate` stacks samples, names
cameras as the policy does, normalises and tokenises. Pictures stay uint8 until
they are on the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray

from vla_edge.errors import DatasetError, TrainingError, VlaEdgeError
from vla_edge.lerobot_data.reader import Dataset, open_dataset
from vla_edge.policies.features import ACTION, STATE
from vla_edge.policies.scaling import Normalization, normalize, to_relative
from vla_edge.policies.smolvla.policy import SCENE, SCENE_MASK, TOKEN_MASK, TOKENS
from vla_edge.training.augment import augment
from vla_edge.training.frozen.row_store import RowStore
from vla_edge.training.run_config import AugmentConfig, TaskData

IS_PAD = "action_is_pad"
EARLIER = "earlier."
"""Prefix of the keys that hold the observation `shift` frames before (stale delta target)."""


@dataclass(frozen=True, slots=True)
class FrameSettings:
    """What is read per frame. `cameras`: dataset keys; `chunk`: actions; `stale`: the largest shift of an earlier
    observation to read beside it, 0 for none; `seed` drives augmentation and the shift."""

    cameras: tuple[str, ...]
    chunk: int
    seed: int
    augment: AugmentConfig = AugmentConfig()
    stale: int = 0


@dataclass(frozen=True)
class RawSample:
    """images: dataset key → uint8 [h, w, 3]; state float32 [n]; actions float32 [chunk, n]; is_pad bool [chunk].
    `shift`: frames between `earlier` (None unless asked for) and this one. scene: float32 [rows, width], what a frozen
    model made of pictures and instruction, with where it is kept."""

    images: Mapping[str, NDArray[np.uint8]]
    state: NDArray[np.float32]
    actions: NDArray[np.float32]
    is_pad: NDArray[np.bool_]
    task: str
    shift: int = 0
    earlier: RawSample | None = None
    scene: tuple[NDArray[np.float32], KeptScenes] | None = None


@dataclass(frozen=True)
class KeptScenes:
    """Where a dataset's scenes are kept (`frozen/prefix_cache.py`). mask: bool, valid rows in front of the instruction;
    longest: rows that are kept of an instruction."""

    store: RowStore
    mask: NDArray[np.bool_]
    longest: int

    def batch(self, rows: NDArray[np.float32], token_mask: torch.Tensor, padding_side: str) -> dict[str, torch.Tensor]:
        """Kept rows [B, rows, width] as a batch's, with as many rows of the instruction as `token_mask` [B, T] has."""
        pictures, length = len(self.mask), token_mask.shape[1]
        scene = torch.from_numpy(rows).unflatten(1, (-1, 2, pictures + self.longest))
        if length != self.longest:
            more = length - self.longest  # padding, which is masked; negative: it is cut
            words = functional.pad(
                scene[:, :, :, pictures:], (0, 0, more, 0) if padding_side == "left" else (0, 0, 0, more)
            )
            scene = torch.cat((scene[:, :, :, :pictures], words), dim=3)
        mask = torch.cat((torch.from_numpy(self.mask).expand(len(rows), -1), token_mask.bool()), dim=1)
        return {SCENE: scene, SCENE_MASK: mask}


class Frames:
    """Training frames of one dataset: those of its chosen episodes without the held-out ones.

    DatasetError for a missing folder, an empty or wrong episode list, missing
    cameras. Opened anew in each loader process: videos are not shared across a fork.
    """

    def __init__(self, data: TaskData, settings: FrameSettings, held_out: bool = False) -> None:
        self.data = data
        self.settings = settings
        self._kept: dict[int, Mapping[str, NDArray[np.uint8]]] = {}
        self.room = 0
        """Bytes of decoded pictures that are still kept (decoding costs more than a small policy's step)."""
        self._dataset: Dataset | None = open_dataset(data.path, tolerance_s=data.tolerance_s)
        self.episodes = chosen_episodes(self.dataset, data, held_out)
        self.cameras = check_columns(self.dataset, settings)
        self.tokens: dict[str, RowStore] = {}  # camera → its tokens, read instead of pictures
        self.scenes: KeptScenes | None = None  # read instead of pictures and instruction
        spans = [np.arange(e.from_index, e.to_index) for e in self.dataset.episodes if e.index in set(self.episodes)]
        self.indices = np.concatenate(spans) if spans else np.zeros(0, np.int64)

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def dataset(self) -> Dataset:
        if self._dataset is None:
            self._dataset = open_dataset(self.data.path, tolerance_s=self.data.tolerance_s)
        return self._dataset

    def __getstate__(self) -> dict[str, Any]:
        """What travels to a loader process: no open file or decoder, no decoded picture."""
        return {**self.__dict__, "_dataset": None, "_kept": {}}

    def sample(self, number: int, draw: int) -> RawSample:
        """Frame `number` of the chosen ones; `draw` makes its augmentation and shift differ from pass to pass."""
        index = int(self.indices[number])
        generator = np.random.default_rng((self.settings.seed, draw, index))
        now = self._at(index, generator)
        if not self.settings.stale:
            return now
        before = index - self.dataset.episode_of(index).from_index
        shift = int(generator.integers(1, min(self.settings.stale, before) + 1)) if before else 0
        earlier = self._at(index - shift, generator)
        return replace(now, shift=shift, earlier=earlier)

    def _at(self, index: int, generator: np.random.Generator) -> RawSample:
        if self.scenes is not None:
            return replace(self._read(index, {}), scene=(self.scenes.store.read(index), self.scenes))
        kept = {key: tokens.read(index) for key, tokens in self.tokens.items()} or self._kept.get(index)
        sample = self._read(index, kept)
        if not self.settings.augment.most:
            return sample
        changed = {key: augment(image, self.settings.augment, generator) for key, image in sample.images.items()}
        return replace(sample, images=changed)

    def pictured(self, index: int) -> RawSample:
        """Frame `index` of the dataset as it was recorded, whatever is kept of it."""
        return self._read(index, None)

    def _read(self, index: int, kept: Mapping[str, NDArray] | None) -> RawSample:
        """The frame with the pictures (or tokens) `kept`, decoded where there are none."""
        frame = self.dataset.frame(index, self.cameras if kept is None else ())
        actions, is_pad = self.dataset.chunk(index, self.settings.chunk)
        images = self._keep(index, frame.images) if kept is None else kept
        state = np.asarray(frame.values[STATE], np.float32)
        return RawSample(images, state, np.asarray(actions, np.float32), is_pad, frame.task)

    def _keep(self, index: int, images: Mapping[str, NDArray[np.uint8]]) -> Mapping[str, NDArray[np.uint8]]:
        size = sum(image.nbytes for image in images.values())
        if size <= self.room:
            self._kept[index] = images
            self.room -= size
        return images


def chosen_episodes(dataset: Dataset, data: TaskData, held_out: bool) -> tuple[int, ...]:
    """Episode indices to read: the chosen list (all when empty) without, or only, the held-out ones."""
    known = {episode.index for episode in dataset.episodes}
    wrong = sorted({*data.episodes, *data.held_out} - known)
    if wrong:
        raise DatasetError(f"{dataset.root}: no episode {wrong[0]}; there are {len(known)}, from 0 to {max(known)}")
    if held_out:
        return tuple(sorted(data.held_out))
    chosen = sorted(set(data.episodes or known) - set(data.held_out))
    if not chosen:
        raise DatasetError(
            f"{dataset.root}: no episode is left to train on; the episode list is empty after holding out "
            f"{len(data.held_out)}"
        )
    return tuple(chosen)


def check_columns(dataset: Dataset, settings: FrameSettings) -> tuple[str, ...]:
    """State, action and, where cameras are wanted, at least one of them are there; returns those that are. The policy
    sees the others masked."""
    for key in (STATE, ACTION):
        if key not in dataset.features:
            raise DatasetError(f"{dataset.root}: no feature {key}; it has {', '.join(dataset.features)}")
    there = tuple(key for key in settings.cameras if key in dataset.camera_keys)
    if settings.cameras and not there:
        raise DatasetError(
            f"{dataset.root}: no camera {settings.cameras[0]}; it has {', '.join(dataset.camera_keys)}; give data with "
            "the policy's cameras, or a policy fine-tuned on these with --camera"
        )
    return there


class Mix(torch.utils.data.Dataset):
    """Several `Frames` behind one index: a pick is (source, frame, draw)."""

    def __init__(self, sources: Sequence[Frames]) -> None:
        self.sources = tuple(sources)

    def __getitem__(self, pick: tuple[int, int, int]) -> RawSample | VlaEdgeError:
        """The frame; in a loader process an error is handed over as it is, for torch would wrap it in its traceback."""
        source, frame, draw = pick
        frames = self.sources[source]
        try:
            return frames.sample(frame, draw)
        except DatasetError as error:
            index = int(frames.indices[frame])
            place = f"{frames.data.path}: frame {index} (episode {frames.dataset.episode_of(index).index})"
            refusal = DatasetError(f"{place}: {error}; leave the episode out with --episodes, or mend it")
            if torch.utils.data.get_worker_info() is None:
                raise refusal from None
            return refusal

    def __len__(self) -> int:
        return sum(len(source) for source in self.sources)


def collate(samples: Sequence[RawSample], policy: Any) -> dict[str, torch.Tensor]:
    """A training batch for `policy`: pictures uint8 [B, h, w, 3] by the policy's names, state and actions normalised.

    With earlier observations the same keys again under `earlier.`, and `shift` int64 [B].
    """
    batch = observation_batch(samples, policy)
    actions = _fitting(_stack([s.actions for s in samples], ACTION), ACTION, policy.settings.action_target)
    actions = to_relative(actions, states_of(samples), policy.settings.relative)
    batch[ACTION] = normalize(actions, policy.settings.action_target)
    batch[IS_PAD] = _stack([s.is_pad for s in samples], IS_PAD)
    earlier = [s.earlier for s in samples if s.earlier is not None]
    if earlier:
        batch |= {f"{EARLIER}{key}": value for key, value in observation_batch(earlier, policy).items()}
        batch["shift"] = torch.tensor([s.shift for s in samples])
    return batch


def states_of(samples: Sequence[RawSample]) -> torch.Tensor:
    """float32 [B, n], in robot units."""
    return _stack([s.state for s in samples], STATE)


def to_device(batch: Mapping[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    return {key: value.to(device, non_blocking=True) for key, value in batch.items()}


def observation_batch(samples: Sequence[RawSample], policy: Any) -> dict[str, torch.Tensor]:
    """What `collate` makes of the observations alone."""
    batch: dict[str, torch.Tensor] = {}
    for camera in policy.settings.cameras:
        pictures = [s.images[camera.source] for s in samples if camera.source in s.images]
        if pictures and len(pictures) < len(samples):
            raise DatasetError(
                f"some data of one batch lack camera {camera.source}; give datasets with the same cameras"
            )
        if pictures:
            batch[camera.name] = _stack(pictures, camera.source)
    batch[STATE] = normalize(_fitting(states_of(samples), STATE, policy.settings.state), policy.settings.state)
    if policy.settings.tokenizer is not None:
        batch[TOKENS], batch[TOKEN_MASK] = policy.tokenizer.encode([s.task for s in samples])
    scenes = [s.scene for s in samples if s.scene is not None]
    if scenes:
        side = policy.tokenizer.settings.padding_side
        masks = batch[TOKEN_MASK].split(1)
        parts = [kept.batch(rows[None], mask, side) for (rows, kept), mask in zip(scenes, masks)]
        batch |= {name: _joined([part[name] for part in parts], name) for name in (SCENE, SCENE_MASK)}
    return batch


def _fitting(values: torch.Tensor, name: str, by: Normalization) -> torch.Tensor:
    """`values` when their last axis is the one the policy's statistics are of; DatasetError otherwise."""
    if values.shape[-1] != len(by.low):
        raise DatasetError(
            f"{name} of the data has {values.shape[-1]} dimensions, the policy's statistics have {len(by.low)}; give "
            "data of its robot"
        )
    return values


def _joined(parts: Sequence[torch.Tensor], name: str) -> torch.Tensor:
    shapes = {tuple(part.shape[1:]) for part in parts}
    if len(shapes) != 1:
        raise TrainingError(f"{name} has shapes {sorted(shapes)} in one batch; give datasets with the same cameras")
    return torch.cat(list(parts))


def _stack(arrays: Sequence[NDArray], name: str) -> torch.Tensor:
    shapes = {array.shape for array in arrays}
    if len(shapes) != 1:
        raise TrainingError(
            f"{name} has shapes {sorted(shapes)} in one batch; give datasets whose {name} has one shape"
        )
    return torch.from_numpy(np.stack(arrays))
