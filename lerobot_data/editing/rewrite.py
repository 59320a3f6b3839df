# SPDX-License-Identifier: Apache-2.0
"""Episodes of one or several open datasets written anew as one v3.0 dataset: what convert, merge, split, delete and
renumber have in common.

Numbers, pictures and video packets are copied, nothing is encoded anew (LeRobot's own delete and split encode the
videos they cut). Statistics that a source has stay as they are; those of the columns that are counted anew, and those
that a source lacks, are computed on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vla_edge.errors import ConfigError, DatasetError
from vla_edge.lerobot_data import layout, tables
from vla_edge.lerobot_data.episode_table import EpisodeRow, EpisodeTable
from vla_edge.lerobot_data.meta import Episode, column_names, read_episode_stats
from vla_edge.lerobot_data.reader import Dataset
from vla_edge.lerobot_data.recompute import completed, picture_statistics
from vla_edge.lerobot_data.stats import Stats, aggregate, number_stats
from vla_edge.lerobot_data.video_files import VideoFiles

Progress = Callable[[int, int], None]
"""Called with (episodes done, episodes in all)."""


@dataclass(frozen=True, slots=True)
class FileSizes:
    """Target sizes in MiB: a file takes episodes until the next would pass its size."""

    data_file_mb: float = layout.DATA_FILE_MB
    video_file_mb: float = layout.VIDEO_FILE_MB

    def __post_init__(self) -> None:
        for name, size in (("data", self.data_file_mb), ("video", self.video_file_mb)):
            if not 0 < size < inf:
                raise ConfigError(
                    f"{name} file size {size} MB: give a number above 0, for example {layout.DATA_FILE_MB}"
                )


DEFAULT_SIZES = FileSizes()


@dataclass(frozen=True, slots=True)
class Part:
    """An open dataset and which of its episodes are written, in the order in which they are to stand."""

    dataset: Dataset
    episodes: Sequence[Episode]


def write_episodes(
    parts: Sequence[Part],
    tasks: Sequence[str],
    folder: Path,
    sizes: FileSizes = DEFAULT_SIZES,
    progress: Progress | None = None,
) -> None:
    """Fill the empty `folder` with the episodes of all `parts`, whose features are those of the first.

    tasks: every text that a frame has; their places are the new task numbers.
    """
    first = parts[0].dataset.info
    for part in parts:
        _refuse_unknown_columns(part.dataset)
    numbers = {text: number for number, text in enumerate(tasks)}
    writer = _Writer(first, folder, sizes)
    stored = [_stored_statistics(part.dataset) for part in parts]
    pictures = picture_statistics(first, [entry for entries in stored for entry in entries.values()])
    count = sum(len(part.episodes) for part in parts)
    with writer:
        for part, known in zip(parts, stored):
            for episode in part.episodes:
                stats = completed(part.dataset, known, episode, pictures)
                writer.append(part.dataset, episode, numbers, stats)
                if progress is not None:
                    progress(writer.episodes, count)
    tables.write_tasks(folder / layout.TASKS_FILE, dict(enumerate(tasks)))
    tables.write_json(folder / layout.STATS_FILE, tables.stats_to_json(aggregate(writer.stats)))
    features = {
        key: dict(value) if value["dtype"] == "video" else dict(value) | {"fps": first.fps}
        for key, value in _shared_features(parts).items()
    }
    counts = {"total_episodes": count, "total_frames": writer.frames, "total_tasks": len(tasks)}
    fields = dict(first.raw) | counts | {"fps": first.fps}
    if len(parts) > 1 or parts[0].dataset.counted_anew or count != len(parts[0].dataset.episodes):
        fields["splits"] = {"train": f"0:{count}"}
    tables.write_json(
        folder / layout.INFO_FILE, tables.info_fields(fields, features, sizes.data_file_mb, sizes.video_file_mb)
    )


def _refuse_unknown_columns(dataset: Dataset) -> None:
    for path in dataset.files:
        odd = sorted(column_names(path) - set(dataset.info.raw["features"]))
        if odd:
            raise DatasetError(f"{path}: columns {odd} stand in the file only; describe them in meta/info.json")


def _shared_features(parts: Sequence[Part]) -> Mapping[str, Mapping[str, Any]]:
    """The features as the first dataset states them; what another says differently of a video's encoder is null, as
    LeRobot's merge writes it."""
    first, *others = [part.dataset.info.raw["features"] for part in parts]
    merged = {}
    for key, value in first.items():
        entry = dict(value)
        facts = [dict(raw[key].get("info") or {}) for raw in (first, *others)]
        if others and value["dtype"] == "video":
            entry["info"] = {
                name: fact if all(name in other and other[name] == fact for other in facts) else None
                for name, fact in facts[0].items()
            }
        merged[key] = entry
    return merged


def _stored_statistics(dataset: Dataset) -> dict[int, Stats]:
    """By the episode's place in the open dataset; none where the version keeps none or the file is gone."""
    info = dataset.info
    if info.version != layout.V30 and not (dataset.root / layout.V21_STATS_FILE).is_file():
        return {}
    stored = read_episode_stats(dataset.root, info)
    known = {place: stored[number] for place, number in enumerate(dataset.numbers) if number in stored}
    features = info.raw["features"]
    return {place: {key: entry for key, entry in stats.items() if key in features} for place, stats in known.items()}


class _Writer:
    """The files of a new dataset, open while episodes are appended."""

    def __init__(self, info: layout.Info, folder: Path, sizes: FileSizes) -> None:
        self._info, self._schema = info, tables.frame_schema(info.features)
        self._data = tables.TableFiles(folder, layout.DATA_PATH, sizes.data_file_mb * tables.MB, info.chunks_size)
        self._videos = {
            key: VideoFiles(folder, key, sizes.video_file_mb * tables.MB, info.chunks_size) for key in info.filmed_keys
        }
        self._rows = EpisodeTable(folder, sizes.data_file_mb, info.chunks_size)
        self._stack = ExitStack()
        self.episodes, self.frames = 0, 0
        self.stats: list[Stats] = []

    def __enter__(self) -> None:
        for close in (self._data.close, self._rows.close, *(files.close for files in self._videos.values())):
            self._stack.callback(close)

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def append(self, dataset: Dataset, episode: Episode, tasks: Mapping[str, int], stats: Stats) -> None:
        counted = self._counted(dataset, episode, tasks)
        for key, values in counted.items():
            if not np.array_equal(values, dataset.column_in_files(key)[episode.from_index : episode.to_index]):
                stats = stats | {key: number_stats(values)}
        table = self._table(dataset, episode, counted)
        place = self._data.place(table.nbytes)
        self._data.write(table)
        spans = {}
        for key, files in self._videos.items():
            if key not in episode.videos:
                continue
            span = episode.videos[key]
            part = (span.from_s, span.from_s + episode.length / dataset.fps)
            spans[key] = files.append(dataset.root / span.path, part if dataset.info.version == layout.V30 else None)
        ends = self.frames, self.frames + episode.length
        self._rows.append(EpisodeRow(self.episodes, place, *ends, spans, episode.tasks, stats))
        self.stats.append(stats)
        self.episodes += 1
        self.frames += episode.length

    def _counted(self, dataset: Dataset, episode: Episode, tasks: Mapping[str, int]) -> dict[str, NDArray]:
        """The columns that depend on what else is in the dataset: [frames] each."""
        used = dataset.column("task_index")[episode.from_index : episode.to_index]
        renamed = {number: tasks[dataset.task_text(number)] for number in np.unique(used).tolist()}
        return {
            "episode_index": np.full(episode.length, self.episodes),
            "index": np.arange(self.frames, self.frames + episode.length),
            "task_index": np.array([renamed[number] for number in used.tolist()]),
        }

    def _table(self, dataset: Dataset, episode: Episode, counted: Mapping[str, NDArray]) -> pa.Table:
        info = self._info
        raw = [key for key in info.raw["features"] if key not in info.features and key not in info.filmed_keys]
        whole = [key for key in self._schema.names if info.features[key].dtype == "image"]
        stored = dataset.stored_rows(episode, whole + raw) if whole + raw else None
        cells = {}
        for key in self._schema.names:
            feature = info.features[key]
            if stored is not None and key in whole:
                cells[key] = _image_cells(dataset.root, key, stored[key])
            else:
                values = counted.get(key, dataset.column(key)[episode.from_index : episode.to_index])
                cells[key] = tables.column_cells(key, feature, values)
        table = pa.table(cells, schema=self._schema)
        for key in raw:
            assert stored is not None
            table = table.append_column(stored.schema.field(key), stored[key])
        return table


def _image_cells(root: Path, key: str, column: pa.ChunkedArray) -> pa.Array:
    cells = column.combine_chunks()
    try:
        return cells.cast(tables.IMAGE_TYPE)
    except pa.ArrowException as error:
        raise DatasetError(f"{root}: column {key} holds no images ({error}); restore the data files") from None


def used_tasks(parts: Sequence[Part]) -> list[str]:
    """Every task text that a frame of the episodes has, in the order of its number, dataset after dataset."""
    texts: dict[str, None] = {}
    for part in parts:
        column = part.dataset.column("task_index")
        used = {int(n) for episode in part.episodes for n in np.unique(column[episode.from_index : episode.to_index])}
        texts |= dict.fromkeys(part.dataset.task_text(number) for number in sorted(used))
    return list(texts)
