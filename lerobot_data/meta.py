# SPDX-License-Identifier: Apache-2.0
"""What the `meta` folder says about tasks, episodes and statistics, for both versions in one form."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vla_edge.errors import DatasetError
from vla_edge.files import refuse_pointer
from vla_edge.lerobot_data import layout
from vla_edge.lerobot_data.layout import Info, Location
from vla_edge.lerobot_data.stats import Stats, aggregate


@dataclass(frozen=True, slots=True)
class VideoSpan:
    """Where an episode lies in a video file. Path relative to the root; seconds of the file's clock."""

    path: str
    from_s: float
    to_s: float


@dataclass(frozen=True, slots=True)
class Episode:
    """One episode. Frames `from_index` up to, not including, `to_index` of the whole dataset."""

    index: int
    from_index: int
    to_index: int
    tasks: tuple[str, ...]
    data_path: str
    videos: Mapping[str, VideoSpan]

    @property
    def length(self) -> int:
        return self.to_index - self.from_index


@contextmanager
def _parquet(path: Path) -> Iterator[pq.ParquetFile]:
    """Raises DatasetError for a file that is missing, damaged or a Git LFS pointer."""
    refuse_pointer(path, DatasetError)
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except FileNotFoundError:
        raise DatasetError(f"{path} is missing; restore it from the source of the dataset") from None
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path} cannot be read as parquet ({error}); restore the file") from None


def read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Raises DatasetError when the file is missing, damaged or lacks a column."""
    with _parquet(path) as file:
        table = file.read(columns=columns)
    for name in columns or ():
        if name not in table.column_names:
            raise DatasetError(f"{path}: column {name} is missing; restore the file")
    return table


def column_names(path: Path) -> set[str]:
    """Raises DatasetError when the file is missing or damaged."""
    with _parquet(path) as file:
        return set(file.schema_arrow.names)


def read_tasks(root: Path, info: Info) -> dict[int, str]:
    """task index → task text. Further columns of the tasks' table are of no use here."""
    if info.version != layout.V30:
        path = root / layout.V21_TASKS_FILE
        pairs = [(row.get("task_index"), row.get("task")) for row in layout.read_jsonl(path)]
    else:
        path = root / layout.TASKS_FILE
        table = read_table(path)
        if "task_index" not in table.column_names:
            raise DatasetError(f"{path}: column task_index is missing; restore the file")
        pairs = list(zip(table["task_index"].to_pylist(), table[_text_column(path, table)].to_pylist()))
    tasks: dict[int, str] = {}
    for index, text in pairs:
        if type(index) is not int or not isinstance(text, str):
            raise DatasetError(
                f"{path}: task {text!r} with index {index!r} is not a text with a number; restore the file"
            )
        if index in tasks:
            raise DatasetError(f"{path}: task_index {index} stands twice; restore the file")
        tasks[index] = text
    return dict(sorted(tasks.items()))


def _text_column(path: Path, table: pa.Table) -> str:
    """The column pandas takes as the index, as LeRobot does; else `task`; else the only one beside task_index."""
    described = (table.schema.pandas_metadata or {}).get("index_columns") or []
    texts = [name for name in table.column_names if name != "task_index"]
    for name in (*described, "task"):
        if name in texts:
            return str(name)
    if len(texts) != 1:
        raise DatasetError(f"{path}: columns {table.column_names}; a column `task` beside task_index is expected")
    return texts[0]


def read_episodes(root: Path, info: Info, gaps: bool = False) -> list[Episode]:
    """All episodes in the order of their index. gaps: numbers may be missing, and frames are then counted anew."""
    episodes = _episodes_v21(root, info) if info.version != layout.V30 else _episodes_v30(root, info)
    for position, episode in enumerate(episodes):
        if episode.index != position and not gaps:
            raise DatasetError(
                f"{root}: episode {position} is missing in meta (found {episode.index}); restore the files, or close "
                f"the gap with `vla-data renumber {root} --out NEW`"
            )
    return episodes


def _episodes_v21(root: Path, info: Info) -> list[Episode]:
    path = root / layout.V21_EPISODES_FILE
    rows = [
        _checked(path, row, {"episode_index": int, "length": int, "tasks": list}) for row in layout.read_jsonl(path)
    ]
    episodes: list[Episode] = []
    start = 0
    for row in sorted(rows, key=lambda row: row["episode_index"]):
        index, length = row["episode_index"], row["length"]
        names: dict[str, Any] = {"episode_chunk": index // info.chunks_size, "episode_index": index}
        videos = {
            key: VideoSpan(str(info.video_path).format(video_key=key, **names), 0.0, length / info.fps)
            for key in info.filmed_keys
        }
        episodes.append(
            Episode(index, start, start + length, tuple(row["tasks"]), info.data_path.format(**names), videos)
        )
        start += length
    return episodes


def episode_files(root: Path) -> list[Path]:
    """The v3.0 tables of episodes in order. Raises DatasetError when there is none."""
    paths = sorted((root / layout.EPISODES_FOLDER).glob("*/*.parquet"))
    if not paths:
        raise DatasetError(f"{root / layout.EPISODES_FOLDER} holds no parquet file; restore it from the source")
    return paths


def _episodes_v30(root: Path, info: Info) -> list[Episode]:
    kinds: dict[str, type] = dict.fromkeys(
        ("episode_index", "data/chunk_index", "data/file_index", "dataset_from_index", "dataset_to_index"), int
    )
    kinds["tasks"] = list
    files = episode_files(root)
    placed = column_names(files[0])
    filmed = [key for key in info.filmed_keys if key in info.features or f"videos/{key}/file_index" in placed]
    for key in filmed:
        kinds |= {f"videos/{key}/chunk_index": int, f"videos/{key}/file_index": int}
        kinds |= {f"videos/{key}/from_timestamp": float, f"videos/{key}/to_timestamp": float}
    rows = [_checked(path, row, kinds) for path in files for row in read_table(path, list(kinds)).to_pylist()]
    episodes: list[Episode] = []
    for row in sorted(rows, key=lambda row: row["episode_index"]):
        videos: dict[str, VideoSpan] = {}
        for key in filmed:
            place = Location(row[f"videos/{key}/chunk_index"], row[f"videos/{key}/file_index"])
            file = place.path(str(info.video_path), video_key=key)
            videos[key] = VideoSpan(file, row[f"videos/{key}/from_timestamp"], row[f"videos/{key}/to_timestamp"])
        data_path = Location(row["data/chunk_index"], row["data/file_index"]).path(info.data_path)
        span = row["dataset_from_index"], row["dataset_to_index"]
        episodes.append(Episode(row["episode_index"], *span, tuple(row["tasks"]), data_path, videos))
    return episodes


def read_episode_stats(root: Path, info: Info) -> dict[int, Stats]:
    """Per-episode statistics: episode index → feature → statistic."""
    if info.version != layout.V30:
        path = root / layout.V21_STATS_FILE
        if info.version == layout.V20 and not path.is_file():
            return {}  # it has none
        if not path.is_file():
            raise DatasetError(f"{path} is missing; write statistics with `vla-data stats {root} --write`")
        rows = [_checked(path, row, {"episode_index": int, "stats": dict}) for row in layout.read_jsonl(path)]
        return {row["episode_index"]: stats_from_json(path, row["stats"]) for row in rows}
    found: dict[int, Stats] = {}
    for path in episode_files(root):
        for row in read_table(path).to_pylist():
            _checked(path, row, {"episode_index": int})
            stats: Stats = {}
            for name, value in row.items():
                if name.startswith("stats/") and value is not None:
                    key, statistic = name.removeprefix("stats/").rsplit("/", 1)
                    stats.setdefault(key, {})[statistic] = _numbers(path, name, value)
            found[row["episode_index"]] = stats
    return found


def stats_from_json(path: Path, value: Mapping[str, Mapping[str, Any]]) -> Stats:
    try:
        return {
            key: {name: _numbers(path, f"{key}.{name}", numbers) for name, numbers in entry.items()}
            for key, entry in value.items()
        }
    except AttributeError:
        raise DatasetError(f"{path}: statistics are not feature → statistic → numbers; restore the file") from None


def read_stats(root: Path, info: Info) -> Stats:
    """Statistics of the whole dataset. v2.1 keeps them per episode only; they are put together here."""
    if info.version == layout.V30 or (info.version == layout.V20 and not (root / layout.V21_STATS_FILE).is_file()):
        return stats_from_json(root / layout.STATS_FILE, layout.read_json(root / layout.STATS_FILE))
    per_episode = read_episode_stats(root, info)
    return aggregate([per_episode[index] for index in sorted(per_episode)])


def _numbers(path: Path, name: str, value: Any) -> NDArray:
    try:
        array = np.asarray(value)
    except ValueError:
        raise DatasetError(f"{path}: {name} is a ragged list; restore the file") from None
    if array.dtype.kind not in "biuf" or array.ndim == 0:
        raise DatasetError(f"{path}: {name} is not a list of numbers; restore the file")
    return array


def _checked(path: Path, row: dict[str, Any], kinds: Mapping[str, type]) -> dict[str, Any]:
    """`row` with fields of the wanted types (a list is a list of texts; a number of the other type is taken where its
    value stays). Raises DatasetError naming the field."""
    for name, kind in kinds.items():
        value: Any = row.get(name)
        if {type(value), kind} == {int, float} and math.isfinite(value) and kind(value) == value:
            row[name] = value = kind(value)
        fits = type(value) is kind
        if not fits or (kind is list and not all(isinstance(item, str) for item in row[name])):
            raise DatasetError(
                f"{path}: field {name} of episode {row.get('episode_index')} is {value!r}; restore the file"
            )
    return row
