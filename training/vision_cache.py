# SPDX-License-Identifier: Apache-2.0
"""Picture tokens of every frame, computed once by a frozen vision tower and read from disk while training.

    DIR/KEY/meta.json    what they were made with; KEY is its digest: another tower, size or content is another folder
    DIR/KEY/tokens.bin   [frames, tokens, width] in float32, bfloat16 or int8 (then scales.bin float32 [frames, tokens])
    DIR/KEY/done.bin     uint8 [frames], 1 where a frame is whole: what was interrupted goes on there

Tokens are what the connector gives, before scaling. Batches are as large as
training's, so that float32 gives the numbers the tower would have given.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from safetensors.torch import load_file
from torch import Tensor

from vla_edge.bundle import file_sha256
from vla_edge.errors import ConfigError
from vla_edge.files import write_json
from vla_edge.policies.images import prepare_image, to_unit
from vla_edge.policies.smolvla.policy import SmolVLAPolicy
from vla_edge.policies.smolvla.vision import tokens_per_image
from vla_edge.policies.tensor_file import save_tensors
from vla_edge.training.run_config import TrainConfig
from vla_edge.training.training_frames import Frames

BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}


@dataclass(frozen=True)
class CameraTokens:
    """The tokens of one camera of one dataset: `folder` with [frames, tokens, width] of `kind`. Files are opened where
    they are read, so that it travels to loader processes as its path."""

    folder: Path
    frames: int
    tokens: int
    width: int
    kind: str

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    @property
    def size(self) -> int:
        """Bytes on disk."""
        scales = 4 * self.frames * self.tokens if self.kind == "int8" else 0
        return self.frames * self.tokens * self.width * BYTES[self.kind] + scales

    def missing(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of the frames that are not whole yet, sorted."""
        wanted = np.unique(indices)
        done = self.folder / "done.bin"
        return wanted[self._map("done", np.uint8, (self.frames,))[wanted] == 0] if done.is_file() else wanted

    def write(self, indices: NDArray[np.int64], values: Tensor) -> None:
        """Keep float32 tokens [n, tokens, width] of n frames; they count as whole when the bytes are written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        shape = (self.frames, self.tokens, self.width)
        if self.kind == "int8":
            scales = values.abs().amax(-1).clamp(min=1e-12) / 127
            self._map("scales", np.float32, shape[:2])[indices] = scales.numpy()
            self._map("tokens", np.int8, shape)[indices] = (values / scales[..., None]).round().to(torch.int8).numpy()
            self.__dict__["_scales"].flush()
        elif self.kind == "bfloat16":
            self._map("tokens", np.int16, shape)[indices] = values.bfloat16().view(torch.int16).numpy()
        else:
            self._map("tokens", np.float32, shape)[indices] = values.numpy()
        for name in ("tokens", "done"):
            if name == "done":
                self._map("done", np.uint8, (self.frames,))[indices] = 1
            self.__dict__[f"_{name}"].flush()

    def read(self, index: int) -> NDArray[np.float32]:
        """[tokens, width] of a frame."""
        shape = (self.frames, self.tokens, self.width)
        if self.kind == "int8":
            scales = self._map("scales", np.float32, shape[:2])[index]
            return self._map("tokens", np.int8, shape)[index] * scales[:, None]  # type: ignore[no-any-return]
        if self.kind == "bfloat16":
            return torch.from_numpy(self._map("tokens", np.int16, shape)[index]).view(torch.bfloat16).float().numpy()
        return np.array(self._map("tokens", np.float32, shape)[index])

    def _map(self, name: str, kind: Any, shape: tuple[int, ...]) -> NDArray:
        held = self.__dict__.get(f"_{name}")
        if held is None:
            file = self.folder / f"{name}.bin"
            held = np.memmap(file, kind, "r+" if file.is_file() else "w+", shape=shape)
            self.__dict__[f"_{name}"] = held
        return held  # type: ignore[no-any-return]


def attach_cache(config: TrainConfig, policy: Any, sources: Sequence[Frames]) -> str:
    """Let `sources` give tokens of `config.cache_vision` instead of pictures; returns the note that tells its size.

    Nothing is computed yet (`fill_cache`). ConfigError: pictures are augmented, the tower trains, the disk is small.
    """
    if not isinstance(policy, SmolVLAPolicy):
        raise ConfigError("--cache-vision is for SmolVLA: its vision tower can be frozen; leave it out")
    if config.augment.most:
        raise ConfigError("--cache-vision keeps each picture's tokens once; --augment changes pictures: leave one out")
    if any(weight.requires_grad for module in _tower(policy) for weight in module.parameters()):
        raise ConfigError("--cache-vision needs a frozen vision tower and connector; give --expert-only")
    size = policy.config.resize_imgs_with_padding
    tower, data = _digest_of(policy), {frames.data.path: _data_digest(Path(frames.data.path)) for frames in sources}
    opened: dict[Path, CameraTokens] = {}
    for frames in sources:
        for key in frames.cameras:
            height, width = size or frames.dataset.features[key].shape[:2]
            count, rows = len(frames.dataset), tokens_per_image(policy.backbone, height, width)
            meta: dict[str, Any] = {
                "tower": tower,
                "data": data[frames.data.path],
                "camera": key,
                "size": list(size) if size else None,
                "type": config.cache_type,
                "tokens": rows,
                "frames": count,
            }
            folder = Path(config.cache_vision) / hashlib.sha256(json.dumps(meta).encode()).hexdigest()[:16]
            tokens = CameraTokens(
                folder, meta["frames"], meta["tokens"], policy.backbone.text.hidden_size, config.cache_type
            )
            frames.tokens[key] = opened.setdefault(folder, tokens)
            if not folder.is_dir():
                frames.cache_meta[key] = meta
    total = sum(tokens.size for tokens in opened.values())
    new = sum(tokens.size for tokens in opened.values() if not tokens.folder.is_dir())
    place = Path(config.cache_vision)
    free = shutil.disk_usage(next(p for p in (place, *place.absolute().parents) if p.exists())).free
    if new > free:
        raise ConfigError(
            f"--cache-vision {place}: needs {new / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; give another disk, or "
            "--cache-type bfloat16 or int8"
        )
    left = sum(len(frames.tokens[key].missing(frames.indices)) for frames in sources for key in frames.cameras)
    return f"vision cache {place}: {total / 1e6:.0f} MB in {config.cache_type}, {left} pictures are left to compute"


@torch.no_grad()
def fill_cache(policy: SmolVLAPolicy, sources: Sequence[Frames], batch_size: int, device: torch.device) -> None:
    """Compute what the caches of `sources` lack, `batch_size` pictures at a time."""
    model = policy.model.vlm_with_expert
    for frames in sources:
        for key, tokens in frames.tokens.items():
            missing = tokens.missing(frames.indices)
            if not len(missing):
                continue
            if key in frames.cache_meta:
                tokens.folder.mkdir(parents=True, exist_ok=True)
                write_json(tokens.folder / "meta.json", frames.cache_meta[key])
            parts = [missing[start : start + batch_size] for start in range(0, len(missing), batch_size)]
            for part in track(parts, f"pictures of {key}", console=Console(stderr=True)):
                rows = [frames.dataset.frame(int(i), (key,)).images[key] for i in np.resize(part, batch_size)]
                pictures = to_unit(torch.from_numpy(np.stack(rows)).to(device), key)
                found = model.embed_image(prepare_image(pictures, policy.config.resize_imgs_with_padding))
                tokens.write(part, found[: len(part)].float().cpu())


def release_tower(policy: SmolVLAPolicy, place: Path) -> None:
    """Leave the tower's weights on disk while training: they are mapped from a file of `place`, which only writing a
    checkpoint reads."""
    for name, module in zip(("tower", "connector"), _tower(policy)):
        state = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
        file = place / f"{name}_{_digest_of(policy)[:16]}.safetensors"
        if not file.is_file():
            save_tensors(state, file)
        module.load_state_dict(load_file(file), assign=True)


def _tower(policy: SmolVLAPolicy) -> tuple[torch.nn.Module, torch.nn.Module]:
    vlm = policy.model.vlm_with_expert.vlm.model
    return vlm.vision_model, vlm.connector


def _digest_of(policy: SmolVLAPolicy) -> str:
    digest = hashlib.sha256()
    for module in _tower(policy):
        for name, value in module.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _data_digest(root: Path) -> str:
    """sha256 over everything that pictures are read from."""
    digest = hashlib.sha256()
    files = [path for part in ("data", "videos", "images") for path in (root / part).rglob("*") if path.is_file()]
    for path in sorted([*files, root / "meta" / "info.json"]):
        digest.update(f"{path.relative_to(root)} {file_sha256(path)}".encode())
    return digest.hexdigest()
