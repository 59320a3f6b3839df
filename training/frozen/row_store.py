# SPDX-License-Identifier: Apache-2.0
"""Rows of numbers a frame, on disk: what a frozen part of a policy made of it.

DIR/KEY/meta.json    what they were made with; KEY is its digest: another tower, size or content is another folder
DIR/KEY/rows.bin     [frames, rows, width] in float32, bfloat16 or int8 (then scales.bin float32 [frames, rows])
DIR/KEY/done.bin     uint8 [frames], 1 where a frame is whole: what was interrupted goes on there
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import Tensor

from vla_edge.bundle import file_sha256
from vla_edge.errors import ConfigError
from vla_edge.files import write_json

BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}


@dataclass(frozen=True)
class RowStore:
    """`folder` with [frames, rows, width] of `kind`, made with what `meta` says. Files are opened where they are read:
    it travels to loader processes as its path."""

    folder: Path
    frames: int
    rows: int
    width: int
    kind: str
    meta: Mapping[str, Any]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}

    @property
    def size(self) -> int:
        """Bytes on disk."""
        scales = 4 * self.frames * self.rows if self.kind == "int8" else 0
        return self.frames * self.rows * self.width * BYTES[self.kind] + scales

    def missing(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of the frames that are not whole yet, sorted."""
        wanted = np.unique(indices)
        done = self.folder / "done.bin"
        return wanted[self._map("done", np.uint8, (self.frames,))[wanted] == 0] if done.is_file() else wanted

    def write(self, indices: NDArray[np.int64], values: Tensor) -> None:
        """Keep float32 rows [n, rows, width] of n frames; they count as whole when the bytes are written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        shape = (self.frames, self.rows, self.width)
        if self.kind == "int8":
            scales = values.abs().amax(-1).clamp(min=1e-12) / 127
            self._map("scales", np.float32, shape[:2])[indices] = scales.numpy()
            self._map("rows", np.int8, shape)[indices] = (values / scales[..., None]).round().to(torch.int8).numpy()
            self.__dict__["_scales"].flush()
        elif self.kind == "bfloat16":
            self._map("rows", np.int16, shape)[indices] = values.bfloat16().view(torch.int16).numpy()
        else:
            self._map("rows", np.float32, shape)[indices] = values.numpy()
        for name in ("rows", "done"):
            if name == "done":
                self._map("done", np.uint8, (self.frames,))[indices] = 1
            self.__dict__[f"_{name}"].flush()

    def read(self, index: int) -> NDArray[np.float32]:
        """[rows, width] of a frame."""
        shape = (self.frames, self.rows, self.width)
        if self.kind == "int8":
            scales = self._map("scales", np.float32, shape[:2])[index]
            return self._map("rows", np.int8, shape)[index] * scales[:, None]  # type: ignore[no-any-return]
        if self.kind == "bfloat16":
            return torch.from_numpy(self._map("rows", np.int16, shape)[index]).view(torch.bfloat16).float().numpy()
        return np.array(self._map("rows", np.float32, shape)[index])

    def _map(self, name: str, kind: Any, shape: tuple[int, ...]) -> NDArray:
        held = self.__dict__.get(f"_{name}")
        if held is None:
            file = self.folder / f"{name}.bin"
            held = np.memmap(file, kind, "r+" if file.is_file() else "w+", shape=shape)
            self.__dict__[f"_{name}"] = held
        return held  # type: ignore[no-any-return]


def fill_missing(
    store: RowStore, wanted: NDArray[np.int64], size: int, make: Callable[[NDArray[np.int64]], Tensor], title: str = ""
) -> None:
    """Compute and keep those of the `wanted` frames that are not whole, `size` at a time under a bar with `title`.

    make: `size` frames (the last part is filled up with its own again) → rows of each, of which the store takes its
    part.
    """
    missing = store.missing(wanted)
    if len(missing) and not (store.folder / "meta.json").is_file():
        store.folder.mkdir(parents=True, exist_ok=True)
        write_json(store.folder / "meta.json", store.meta)
    parts = [missing[start : start + size] for start in range(0, len(missing), size)]
    for part in track(parts, title, console=Console(stderr=True)) if parts and title else parts:
        store.write(part, make(np.resize(part, size))[: len(part)].float().cpu())


def open_store(place: Path, meta: Mapping[str, Any], shape: tuple[int, int, int], kind: str) -> RowStore:
    """The store in `place` of what `meta` names, [frames, rows, width] = `shape`."""
    content = {**meta, "type": kind, "shape": list(shape)}
    folder = place / hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
    return RowStore(folder, *shape, kind, content)


def check_room(flag: str, place: Path, stores: Iterable[RowStore]) -> int:
    """Bytes of all stores together. ConfigError: what is new of them does not fit on the disk."""
    every = {store.folder: store for store in stores}.values()
    new = sum(store.size for store in every if not store.folder.is_dir())
    free = shutil.disk_usage(next(p for p in (place, *place.absolute().parents) if p.exists())).free
    if new > free:
        raise ConfigError(
            f"{flag} {place}: needs {new / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; give another disk, or "
            "--cache-type bfloat16 or int8"
        )
    return sum(store.size for store in every)


def weights_digest(modules: Iterable[torch.nn.Module]) -> str:
    """sha256 over names and float32 values."""
    digest = hashlib.sha256()
    for module in modules:
        for name, value in module.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def data_digest(root: Path) -> str:
    """sha256 over everything that pictures are read from."""
    digest = hashlib.sha256()
    files = [path for part in ("data", "videos", "images") for path in (root / part).rglob("*") if path.is_file()]
    for path in sorted([*files, root / "meta" / "info.json"]):
        digest.update(f"{path.relative_to(root)} {file_sha256(path)}".encode())
    return digest.hexdigest()
