# SPDX-License-Identifier: Apache-2.0
"""LeRobot's dataset folders, v2.1 and v3.0: names, paths, and what `meta/info.json` says.

Source: the formats as LeRobot 0.4.4 reads and writes them. v2.1 keeps one
parquet and one video per episode; v3.0 appends episodes to files of a target
size and names each episode's place in `meta/episodes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from vla_edge.errors import DatasetError
from vla_edge.fields import parse_json
from vla_edge.files import refuse_pointer

V20 = "v2.0"
"""As v2.1, with statistics of the whole set only."""
V21 = "v2.1"
V30 = "v3.0"
VERSIONS = (V20, V21, V30)

INFO_FILE = "meta/info.json"
STATS_FILE = "meta/stats.json"
TASKS_FILE = "meta/tasks.parquet"
EPISODES_FOLDER = "meta/episodes"
EPISODES_PATH = EPISODES_FOLDER + "/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
V21_EPISODES_FILE = "meta/episodes.jsonl"
V21_STATS_FILE = "meta/episodes_stats.jsonl"
V21_TASKS_FILE = "meta/tasks.jsonl"

CHUNKS_SIZE = 1000
"""Files per chunk folder (v3.0), episodes per chunk folder (v2.1)."""
VALUE_DTYPES = (
    *("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("bool", "string"),
)
"""Types of features that are no cameras."""
IMAGE_AXES = ["height", "width", "channels"]
"""Axes of a camera feature as it is read, in whatever order info.json has them."""
DATA_FILE_MB = 100
VIDEO_FILE_MB = 200


@dataclass(frozen=True, slots=True)
class Feature:
    """One column of the dataset. `shape` is per frame; images are (height, width, channels)."""

    dtype: str
    shape: tuple[int, ...]
    names: Any = None
    video_info: Mapping[str, Any] | None = None

    @property
    def is_camera(self) -> bool:
        return self.dtype in ("image", "video")

    @property
    def numpy_dtype(self) -> np.dtype:
        """dtype of the column in memory; text is `object`."""
        return np.dtype(object) if self.dtype == "string" else np.dtype(self.dtype)


INDEX_FEATURES: dict[str, Feature] = {
    "timestamp": Feature("float32", (1,)),
    "frame_index": Feature("int64", (1,)),
    "episode_index": Feature("int64", (1,)),
    "index": Feature("int64", (1,)),
    "task_index": Feature("int64", (1,)),
}
"""The five columns every dataset has; the writer fills them."""


@dataclass(frozen=True, slots=True)
class Info:
    """`meta/info.json`. raw: every field, also those this package does not use; left_out: features that no policy input
    can be, and why."""

    version: str
    fps: float
    robot_type: str | None
    total_episodes: int
    total_frames: int
    total_tasks: int | None
    chunks_size: int
    data_path: str
    video_path: str | None
    features: Mapping[str, Feature]
    raw: Mapping[str, Any]
    left_out: Mapping[str, str]

    def keys_of(self, dtype: str) -> tuple[str, ...]:
        return tuple(key for key, feature in self.features.items() if feature.dtype == dtype)

    @property
    def video_keys(self) -> tuple[str, ...]:
        return self.keys_of("video")

    @property
    def filmed_keys(self) -> tuple[str, ...]:
        """All features that have video files, also those left out."""
        return tuple(key for key, value in self.raw["features"].items() if value.get("dtype") == "video")

    @property
    def camera_keys(self) -> tuple[str, ...]:
        return tuple(key for key, feature in self.features.items() if feature.is_camera)

    @property
    def value_keys(self) -> tuple[str, ...]:
        """Numbers and texts of a frame: neither cameras nor the five index columns."""
        return tuple(k for k, f in self.features.items() if not f.is_camera and k not in INDEX_FEATURES)


@dataclass(frozen=True, slots=True)
class Location:
    """Chunk folder and file number of a v3.0 file."""

    chunk: int = 0
    file: int = 0

    def next(self, chunks_size: int) -> Location:
        return Location(self.chunk + 1, 0) if self.file >= chunks_size - 1 else Location(self.chunk, self.file + 1)

    def path(self, pattern: str, **names: str) -> str:
        return pattern.format(chunk_index=self.chunk, file_index=self.file, **names)


def read_json(path: Path) -> Any:
    """Raises DatasetError when the file is missing or is not JSON."""
    return _parsed(path, _text(path), "")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """One object per line. Raises DatasetError with the line number."""
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(_text(path).split("\n"), 1):
        if not line.strip():
            continue
        row = _parsed(path, line, f" line {number}")
        if not isinstance(row, dict):
            raise DatasetError(f"{path} line {number} is not an object; restore the file")
        rows.append(row)
    return rows


def _text(path: Path) -> str:
    refuse_pointer(path, DatasetError)
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise DatasetError(f"{path} is missing; point at a LeRobot dataset folder (v2.1 or v3.0)") from None
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not text ({error}); restore it from the source of the dataset") from None


def _parsed(path: Path, text: str, where: str) -> Any:
    return parse_json(text, f"{path}{where}", DatasetError, "restore it from the source of the dataset")


def read_info(root: Path) -> Info:
    """Read `meta/info.json` of a v2.1 or v3.0 folder.

    Raises DatasetError naming the folder, the field or the version.
    """
    if not root.is_dir():
        raise DatasetError(f"dataset {root} does not exist; give the folder that holds meta/info.json")
    path = root / INFO_FILE
    raw = read_json(path)
    if not isinstance(raw, dict):
        raise DatasetError(f"{path} is not an object; restore it from the source of the dataset")
    version = raw.get("codebase_version")
    if version not in VERSIONS:
        raise DatasetError(f"{path}: codebase_version is {version!r}; this package reads {', '.join(VERSIONS)}")
    try:
        info = Info(
            version=version,
            fps=_whole(raw["fps"]),
            robot_type=raw.get("robot_type"),
            total_episodes=int(raw["total_episodes"]),
            total_frames=int(raw["total_frames"]),
            total_tasks=None if raw.get("total_tasks") is None else int(raw["total_tasks"]),
            chunks_size=int(raw.get("chunks_size", CHUNKS_SIZE)),
            data_path=str(raw["data_path"]),
            video_path=raw.get("video_path"),
            features={
                key: _feature(path, key, value) for key, value in raw["features"].items() if not _no_input(value)
            },
            raw=raw,
            left_out={key: why for key, value in raw["features"].items() if (why := _no_input(value))},
        )
    except KeyError as error:
        raise DatasetError(f"{path}: field {error} is missing; restore the file") from None
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DatasetError(f"{path}: a field has a wrong type ({error}); restore the file") from None
    if not info.fps > 0 or info.chunks_size < 1:
        raise DatasetError(
            f"{path}: fps {info.fps} and chunks_size {info.chunks_size} must be positive; restore the file"
        )
    if info.video_keys and not info.video_path:
        raise DatasetError(f"{path}: video features {list(info.video_keys)} without video_path; restore the file")
    fields = {"chunk_index": 0, "file_index": 0} if version == V30 else {"episode_chunk": 0, "episode_index": 0}
    for name, pattern, extra in (("data_path", info.data_path, {}), ("video_path", info.video_path, {"video_key": ""})):
        try:
            str(pattern).format(**fields, **extra)
        except (KeyError, IndexError, ValueError):
            raise DatasetError(
                f"{path}: {name} {pattern!r} is not a {version} pattern of {[*fields, *extra]}; restore the file"
            ) from None
        place = PurePosixPath(str(pattern))
        if place.is_absolute() or ".." in place.parts:
            raise DatasetError(f"{path}: {name} {pattern!r} leads out of the dataset; restore the file")
    return info


def _no_input(value: Any) -> str:
    """Why a feature is none that a policy can take; "" for all others."""
    info = value.get("info") if isinstance(value.get("info"), dict) else {}
    if value.get("dtype") == "language":
        return "annotations in language"
    return "a depth map" if info.get("is_depth_map") or info.get("video.is_depth_map") else ""


def flat_names(names: Any) -> list[str]:
    """The names of a vector or of axes in their order, however they are nested: lists, `{"motors": [...]}`, places
    (`{"delta_x": 0, "delta_y": 1}`)."""
    if isinstance(names, Mapping):
        if names and all(type(place) is int for place in names.values()):
            return [str(name) for name in sorted(names, key=lambda name: int(names[name]))]
        return [name for inner in names.values() for name in flat_names(inner)]
    if isinstance(names, (list, tuple)):
        return [name for inner in names for name in flat_names(inner)]
    return [] if names is None else [str(names)]


def joint_names(feature: Feature) -> tuple[str, ...]:
    """The names of a vector's values in their order; none where there are not as many names as values."""
    names = flat_names(feature.names)
    return tuple(names) if [len(names)] == list(feature.shape) else ()


def _height_width_channels(shape: tuple[int, ...], names: list[str]) -> tuple[int, ...]:
    """A picture's shape in our order. Its axes are told by their names, without names by the size of a channel axis."""
    first = [name.lower()[:1] for name in names]
    if len(first) == 3 and first.count("h") == 1 == first.count("w"):
        height, width = first.index("h"), first.index("w")
    else:
        height, width = (1, 2) if shape[0] in (1, 3) and shape[2] not in (1, 3) else (0, 1)
    return shape[height], shape[width], shape[3 - height - width]


def _feature(path: Path, key: str, value: Mapping[str, Any]) -> Feature:
    if not isinstance(value.get("info"), (dict, type(None))):
        raise DatasetError(f"{path}: info of feature {key} is not an object; restore the file")
    feature = Feature(str(value["dtype"]), tuple(int(n) for n in value["shape"]), value.get("names"), value.get("info"))
    if feature.is_camera:
        if len(feature.shape) != 3:
            raise DatasetError(f"{path}: feature {key} has shape {list(feature.shape)}; an image has three dimensions")
        shape = _height_width_channels(feature.shape, flat_names(feature.names))
        return Feature(feature.dtype, shape, IMAGE_AXES, feature.video_info)
    if feature.dtype not in VALUE_DTYPES:
        raise DatasetError(f"{path}: feature {key} has dtype {feature.dtype!r}; known are {', '.join(VALUE_DTYPES)}")
    return feature


def _whole(number: float) -> float:
    if isinstance(number, (str, bool)):
        raise TypeError(f"fps is {number!r}, not a number")
    return int(number) if float(number).is_integer() else float(number)
