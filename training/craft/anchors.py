# SPDX-License-Identifier: Apache-2.0
"""The anchor cache: inputs, and what the teacher made of them.

    CACHE/shard_0000.safetensors   input.<batch key>, noise, time, x_t, teacher.<feature>: rows are anchors
    CACHE/metadata.json            what it was made with; a cache of another teacher or preprocessing is refused

Pictures are stored as recorded (uint8), so the student sees exactly what it
would see in training.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vla_edge.bundle import file_sha256
from vla_edge.errors import ConfigError, TrainingError
from vla_edge.fields import build, parse_json, read_object
from vla_edge.files import new_folder
from vla_edge.policies.features import ACTION
from vla_edge.policies.scaling import pad_last
from vla_edge.policies.smolvla.flow import sample_time
from vla_edge.policies.smolvla.policy import SmolVLAPolicy
from vla_edge.policies.tensor_file import save_tensors
from vla_edge.training.craft.anchor_features import POOLING, AnchorInputs, feature_names, features_of, layers_of
from vla_edge.training.craft.conflict_projection import retention_loss
from vla_edge.training.run_config import LAYERS, LOSSES, TaskData
from vla_edge.training.statistics import statistics_digest
from vla_edge.training.training_frames import IS_PAD, Frames, FrameSettings, collate

KEEP_STATISTICS = "train with those of the starting checkpoint: --statistics checkpoint"
METADATA = "metadata.json"
SHARD_ROWS = 64
BATCH = 8


@dataclass(frozen=True, slots=True)
class AnchorMeta:
    """`teacher`: sha256 of its model.safetensors. `scale`: per feature and loss, the teacher's distance from its own
    mean (for `mse` its variance). `shards`: file name → sha256."""

    cache_type: str
    teacher: str
    statistics: str
    preprocessing: Mapping[str, Any]
    features: tuple[str, ...]
    layers: tuple[int, ...]
    pooling: tuple[str, ...]
    dtype: str
    count: int
    seed: int
    scale: Mapping[str, Mapping[str, float]]
    shards: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class AnchorPlan:
    """What to build: `count` anchors drawn with `seed` from `data`, feature `groups` (hidden, velocity, vlm), of the
    expert's `layers` (hidden)."""

    data: tuple[TaskData, ...]
    count: int = 256
    seed: int = 0
    groups: tuple[str, ...] = ("hidden", "velocity")
    layers: tuple[int, ...] = LAYERS


def build_anchors(policy: SmolVLAPolicy, plan: AnchorPlan, target: Path, device: torch.device) -> AnchorMeta:
    """Run the teacher over the chosen frames and write the cache to `target` (which must not exist)."""
    features = feature_names(plan.groups, plan.layers)
    cameras = tuple(camera.source for camera in policy.settings.cameras)
    sources = [Frames(task, FrameSettings(cameras, policy.config.chunk_size, plan.seed)) for task in plan.data]
    frames = [(source, frame) for source in sources for frame in range(len(source))]
    generator = torch.Generator().manual_seed(plan.seed)
    order = torch.randperm(len(frames), generator=generator)[: plan.count].tolist()
    if len(order) < plan.count:
        raise ConfigError(f"{plan.count} anchors wanted, the data have {len(frames)} frames; ask for fewer")
    policy = policy.to(device).eval()
    random_state = torch.get_rng_state()
    torch.manual_seed(plan.seed)
    rows: list[dict[str, Tensor]] = []
    for start in track(range(0, len(order), BATCH), "anchors", console=Console(stderr=True), transient=True):
        batch = collate([frames[i][0].sample(frames[i][1], 0) for i in order[start : start + BATCH]], policy)
        rows.append(_run_teacher(policy, batch, features, device))
    torch.set_rng_state(random_state)
    joined = {name: torch.cat(_same_length([row[name] for row in rows], policy)) for name in rows[0]}
    with new_folder(target, TrainingError) as folder:
        shards = {}
        for number, start in enumerate(range(0, plan.count, SHARD_ROWS)):
            file = folder / f"shard_{number:04d}.safetensors"
            save_tensors({name: value[start : start + SHARD_ROWS] for name, value in joined.items()}, file)
            shards[file.name] = file_sha256(file)
        meta = AnchorMeta(
            "hidden_state",
            policy.digest,
            statistics_digest(policy.settings.statistics),
            preprocessing_of(policy),
            features,
            layers_of(features),
            POOLING,
            "float32",
            plan.count,
            plan.seed,
            {name: _scales(name, joined[f"teacher.{name}"]) for name in features},
            shards,
        )
        (folder / METADATA).write_text(json.dumps(asdict(meta), indent=1) + "\n")
    return meta


def preprocessing_of(policy: SmolVLAPolicy) -> dict[str, Any]:
    """What decides how an observation reaches the network, apart from statistics."""
    tokenizer = policy.tokenizer.settings
    return {
        "cameras": [[camera.name, camera.source] for camera in policy.settings.cameras],
        "resize": list(policy.config.resize_imgs_with_padding or ()),
        "tokenizer": file_sha256(tokenizer.folder / "tokenizer.json"),
        "tokens": [tokenizer.max_length, tokenizer.padding, tokenizer.padding_side, tokenizer.append_newline],
        "chunk_size": policy.config.chunk_size,
    }


class AnchorCache:
    """An opened cache; rows are read when asked for. `digest` is the sha256 of its metadata."""

    def __init__(self, folder: Path) -> None:
        refuse_other_kinds(folder)
        data = (folder / METADATA).read_bytes()
        self.folder = folder
        self.digest = hashlib.sha256(data).hexdigest()
        again = "build the anchors again"
        content = parse_json(data, folder / METADATA, TrainingError, again)
        self.meta = build(AnchorMeta, content, folder / METADATA, TrainingError, again)
        try:
            self._shards = [safe_open(folder / name, framework="pt") for name in self.meta.shards]
        except (FileNotFoundError, SafetensorError) as error:
            raise TrainingError(f"{folder}: a shard cannot be read ({error}); {again}") from None
        for name, digest in self.meta.shards.items():
            if file_sha256(folder / name) != digest:
                raise TrainingError(f"{folder / name}: damaged or changed (sha256 differs); build the anchors again")
        rows = sum(shard.get_slice(next(iter(shard.keys()))).get_shape()[0] for shard in self._shards)
        if self.meta.count != rows or not rows:
            raise TrainingError(
                f"{folder / METADATA}: damaged ({self.meta.count!r} anchors there, {rows} in the shards); build the "
                "anchors again"
            )
        self._policy: SmolVLAPolicy | None = None
        self.scenes: Any = None
        """`KeptAnchors`, where the frozen model's part of each anchor is kept."""

    def __len__(self) -> int:
        return self.meta.count

    def fit(self, policy: SmolVLAPolicy, teacher_digest: str) -> None:
        """Check that the cache was made by the weights training starts from, with the same preprocessing.

        TrainingError names what differs.
        """
        again = "build them again from the checkpoint that training starts from"
        for what, then, now, way in (
            ("another teacher", self.meta.teacher, teacher_digest, again),
            ("other statistics", self.meta.statistics, statistics_digest(policy.settings.statistics), KEEP_STATISTICS),
            ("another preprocessing", dict(self.meta.preprocessing), preprocessing_of(policy), again),
        ):
            if then != now:
                raise TrainingError(f"{self.folder}: anchors of {what} {_apart(then, now)}; {way}")
        self._policy = policy

    def require(self, digest: str) -> None:
        """The cache is the one a run was started with."""
        if digest != self.digest:
            raise TrainingError(
                f"{self.folder}: the anchors were built anew since the run started; resume with the old cache or "
                "start a new run"
            )

    def batch(self, rows: Sequence[int], device: torch.device) -> tuple[AnchorInputs, dict[str, Tensor]]:
        """Inputs and teacher's features of some anchors, on `device`. `fit` must have been called."""
        assert self._policy is not None
        batch = (self.scenes or self).observation(rows)
        moved = {name: value.to(device) for name, value in batch.items()}
        x_t, time = (self.stored(name, rows).to(device) for name in ("x_t", "time"))
        inputs = AnchorInputs(self._policy.prepare(moved), x_t, time)
        return inputs, {name: self.stored(f"teacher.{name}", rows).to(device) for name in self.meta.features}

    def observation(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """The observations of some anchors, as a batch."""
        names = [name for name in list(self._shards[0].keys()) if name.startswith("input.")]
        return {name.removeprefix("input."): self.stored(name, rows) for name in names}

    def stored(self, name: str, rows: Sequence[int]) -> Tensor:
        """The rows of one tensor of the shards."""
        return torch.cat([self._row(name, row) for row in rows])

    def scale(self, feature: str, loss: str) -> float:
        """What the loss of `feature` is divided by."""
        return self.meta.scale[feature][loss]

    def _row(self, name: str, row: int) -> Tensor:
        offset = row % SHARD_ROWS
        return self._shards[row // SHARD_ROWS].get_slice(name)[offset : offset + 1]


def _apart(then: Any, now: Any) -> str:
    """What differs, short: the first fields of two objects, the beginnings of two digests."""
    if isinstance(then, str):
        return f"({then[:8]}… there, {now[:8]}… here)"
    return "; ".join(
        f"({name} {then.get(name)} there, {value} here)" for name, value in now.items() if then.get(name) != value
    )


@torch.no_grad()
def _run_teacher(
    policy: SmolVLAPolicy, batch: dict[str, Tensor], features: Sequence[str], device: torch.device
) -> dict[str, Tensor]:
    actions = pad_last(batch[ACTION], policy.config.max_action_dim)
    noise, time = torch.randn(actions.shape), sample_time(len(actions), torch.device("cpu"))
    x_t = time[:, None, None] * noise + (1 - time[:, None, None]) * actions
    moved = {name: value.to(device) for name, value in batch.items()}
    teacher = features_of(policy, AnchorInputs(policy.prepare(moved), x_t.to(device), time.to(device)), features)
    inputs = {f"input.{name}": value for name, value in batch.items() if name not in (ACTION, IS_PAD)}
    return {
        **inputs,
        "noise": noise,
        "time": time,
        "x_t": x_t,
        **{f"teacher.{name}": value.cpu() for name, value in teacher.items()},
    }


def _same_length(parts: list[Tensor], policy: SmolVLAPolicy) -> list[Tensor]:
    """Token rows of batches of different length, padded to the longest on the tokenizer's side; others unchanged."""
    widest = max(part.shape[1] if part.ndim == 2 else 0 for part in parts)
    if all(part.ndim != 2 or part.shape[1] == widest for part in parts):
        return parts
    tokenizer = policy.tokenizer.settings
    value = 0 if parts[0].dtype == torch.bool else tokenizer.pad_id
    missing = [widest - part.shape[1] for part in parts]
    sides = [(0, count) if tokenizer.padding_side == "right" else (count, 0) for count in missing]
    return [torch.nn.functional.pad(part, side, value=value) for part, side in zip(parts, sides)]


def _scales(name: str, teacher: Tensor) -> dict[str, float]:
    """Per loss: how far the teacher's anchors lie from their mean. ConfigError when they are all alike."""
    mean = teacher.mean(0, keepdim=True).expand_as(teacher)
    scales = {kind: float(retention_loss(teacher, mean, kind)) for kind in LOSSES}
    if not min(scales.values()) > 0:
        raise ConfigError(
            f"anchor feature {name} is the same for all {len(teacher)} anchors; take more anchors, of different "
            "episodes"
        )
    return scales


def cache_type(folder: Path) -> str:
    """`hidden_state` or `token_level`; TrainingError when `folder` is no anchor cache.

    A cache without the field is told by its content: token-level ones keep `labels`.
    """
    if not folder.is_dir():
        raise TrainingError(f"{folder}: no anchor cache there; build one with `vla-train anchors`")
    file = folder / METADATA
    if file.is_file():
        named = read_object(file, TrainingError, "build the anchors again").get("cache_type")
        if named in ("hidden_state", "token_level"):
            return str(named)
    return "token_level" if "labels" in _first_keys(folder) else "hidden_state"


def refuse_other_kinds(folder: Path) -> None:
    """TrainingError for a token-level cache, for old `.pt` shards, and for a folder without metadata."""
    kind = cache_type(folder)
    if kind == "token_level":
        raise TrainingError(
            f"{folder}: a token_level anchor cache (it holds labels); SmolVLA has no token loss, "
            "build a hidden_state cache with `vla-train anchors`"
        )
    old = sorted(folder.glob("*.pt"))
    if old:
        raise TrainingError(
            f"{old[0]}: an old {kind} shard without teacher and preprocessing digests; build the anchors again"
        )
    if not (folder / METADATA).is_file():
        raise TrainingError(f"{folder / METADATA}: missing; build the anchors again")


def _first_keys(folder: Path) -> set[str]:
    """Names in the first shard, of either format. Old `.pt` shards are read without running code."""
    shards = sorted([*folder.glob("shard_*.safetensors"), *folder.glob("*.pt")])
    if not shards:
        raise TrainingError(f"{folder}: holds no anchor shard; build one with `vla-train anchors`")
    first = shards[0]
    try:
        if first.suffix == ".safetensors":
            with safe_open(first, framework="pt") as content:
                return set(content.keys())
        loaded = torch.load(first, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise TrainingError(
            f"{first}: cannot be read as data only ({str(error).splitlines()[0]}); build the anchors again"
        ) from None
    if isinstance(loaded, list) and loaded:
        loaded = loaded[0]
    return set(loaded) if isinstance(loaded, dict) else set()
