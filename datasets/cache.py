"""Pictures decoded once for training, and batches of frames.

A video decoder gives some hundred frames a second to one core and random
access costs a seek each; training shuffles. So every picture is decoded once,
in order, made small by the caller's preparation, and kept as uint8 in memory
or in a file that is mapped (several processes then share it).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vla_edge.datasets.layout import image_size
from vla_edge.datasets.reader import Dataset
from vla_edge.errors import DatasetError

Image = NDArray[np.uint8]


class ImageSource(Protocol):
    """Where a batch takes its pictures from: a `Dataset` (decodes) or a `FrameCache`."""

    def image(self, camera: str, index: int) -> Image:
        """uint8 [height, width, 3], RGB, of frame `index` of the whole set."""


@dataclass(frozen=True, slots=True)
class Preparation:
    """What is done to a picture before it is kept. `name` says it exactly: it is part of a stored cache's identity.

    apply: uint8 [height, width, 3] → uint8 [height', width', 3], the same size for every picture of a camera.
    """

    name: str
    apply: Callable[[Image], Image]


AS_DECODED = Preparation("as decoded", lambda image: image)


@dataclass(frozen=True, slots=True)
class FrameCache:
    """camera → uint8 [frames, height, width, 3] of the whole data set; read-only."""

    pictures: Mapping[str, Image]

    def image(self, camera: str, index: int) -> Image:
        if camera not in self.pictures:
            raise DatasetError(f"camera {camera!r} is not in the cache; it holds {list(self.pictures)}")
        return self.pictures[camera][index]


def cache_frames(
    dataset: Dataset, cameras: Sequence[str] | None = None, preparation: Preparation = AS_DECODED,
    folder: Path | None = None, progress: Callable[[int, int], None] | None = None,
) -> FrameCache:
    """Decode all pictures of the given cameras (all when None).

    folder: None keeps them in memory; else they are written to a sub-folder named
    by the data set, the cameras and the preparation, and used again when it is
    there. progress: called with (pictures done, pictures in all).
    """
    keys = tuple(dataset.camera_keys if cameras is None else cameras)
    if folder is None:
        return FrameCache(_decode(dataset, keys, preparation, None, progress))
    identity = _identity(dataset, keys, preparation)
    place = folder / hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    if not place.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder))
        try:
            _decode(dataset, keys, preparation, partial, progress)
            (partial / "identity.json").write_text(json.dumps(identity, indent=1), encoding="utf-8")
            os.rename(partial, place)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return FrameCache({key: np.load(place / f"{key}.npy", mmap_mode="r") for key in keys})


def make_batch(
    dataset: Dataset, indices: Sequence[int], horizon: int, images: ImageSource | None = None
) -> dict[str, Any]:
    """Frames `indices` stacked: camera → uint8 [B, h, w, 3]; each value [B, ...]; ``action`` [B, horizon, dim] with
    ``action_is_pad`` bool [B, horizon]; ``task`` a list of texts; ``index`` int64 [B].

    images: where pictures come from (the data set itself when None).
    """
    source = dataset if images is None else images
    cameras = dataset.camera_keys if not isinstance(source, FrameCache) else tuple(source.pictures)
    rows = np.asarray(indices, dtype=np.int64)
    batch: dict[str, Any] = {key: np.stack([source.image(key, int(row)) for row in rows]) for key in cameras}
    batch |= {key: dataset.column(key)[rows] for key in dataset.info.value_keys if key != "action"}
    chunks = [dataset.chunk(int(row), horizon) for row in rows]
    batch["action"] = np.stack([actions for actions, _ in chunks])
    batch["action_is_pad"] = np.stack([is_pad for _, is_pad in chunks])
    batch["task"] = [dataset.task_of(int(row)) for row in rows]
    batch["index"] = rows
    return batch


def _decode(
    dataset: Dataset, keys: Sequence[str], preparation: Preparation, folder: Path | None,
    progress: Callable[[int, int], None] | None,
) -> dict[str, Image]:
    pictures: dict[str, Image] = {}
    for position, key in enumerate(keys):
        first = preparation.apply(dataset.image(key, 0))
        shape = (len(dataset), *first.shape)
        store: Image = (
            np.empty(shape, np.uint8) if folder is None
            else np.lib.format.open_memmap(folder / f"{key}.npy", "w+", np.uint8, shape)
        )
        for index in range(len(dataset)):
            store[index] = preparation.apply(dataset.image(key, index))
            if progress is not None:
                progress(position * len(dataset) + index + 1, len(keys) * len(dataset))
        store.flags.writeable = False
        pictures[key] = store
    return pictures


def _identity(dataset: Dataset, keys: Sequence[str], preparation: Preparation) -> dict[str, Any]:
    """What a stored cache depends on: the files that hold pictures, by name, size and time of change."""
    paths = sorted({*dataset.root.glob("data/**/*.parquet"), *dataset.root.glob("videos/**/*.mp4")})
    files = [(str(path.relative_to(dataset.root)), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    sizes = {key: image_size(dataset.features[key]) for key in keys}
    return {"files": files, "frames": len(dataset), "cameras": sizes, "preparation": preparation.name}
