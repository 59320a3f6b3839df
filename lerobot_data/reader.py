# SPDX-License-Identifier: Apache-2.0
"""Read a LeRobot dataset of either version: frames, chunks of actions, delta timestamps.

    dataset = open_dataset(path)
    sample = dataset.frame(120)                # images uint8 [h, w, 3] RGB, numbers, task text
    actions, is_pad = dataset.chunk(120, 50)   # [50, dim], [50]

Numbers and texts are held in memory; images are decoded when asked for.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vla_edge.errors import DatasetError
from vla_edge.hub import local_folder
from vla_edge.lerobot_data.columns import read_columns, stored_image, wide_column, without_gaps
from vla_edge.lerobot_data.layout import Feature, Info, read_info
from vla_edge.lerobot_data.meta import Episode, read_episodes, read_stats, read_table, read_tasks
from vla_edge.lerobot_data.stats import Stats
from vla_edge.lerobot_data.tolerance import TOLERANCE_S
from vla_edge.lerobot_data.video import VideoReader

_OPEN_VIDEOS = 8


@dataclass(frozen=True, slots=True)
class Sample:
    """One frame of the dataset.

    index: of the whole set; frame_index: within the episode; timestamp: seconds
    since the episode's start. values: feature → array of the feature's shape
    and dtype (``observation.state``, ``action`` …), without wide ones (`columns.is_wide`). images: camera → uint8
    [height, width, 3], RGB.
    """

    index: int
    episode_index: int
    frame_index: int
    timestamp: float
    task_index: int
    task: str
    values: Mapping[str, NDArray]
    images: Mapping[str, NDArray[np.uint8]]


class Dataset:
    """An open dataset; make it with `open_dataset`. Not shared between threads or across a fork."""

    def __init__(self, root: Path, gaps: bool = False, tolerance_s: float = TOLERANCE_S) -> None:
        self.root = root
        self.tolerance_s = tolerance_s
        self.info: Info = read_info(root)
        self.tasks: dict[int, str] = read_tasks(root, self.info)
        self.episodes: tuple[Episode, ...] = tuple(read_episodes(root, self.info, gaps))
        self.numbers = tuple(episode.index for episode in self.episodes)
        """Of the episodes, as the files have them."""
        self.counted_anew = gaps
        if not self.episodes:
            raise DatasetError(f"dataset {root} holds no episode; record or convert one first")
        self._columns, self._files = read_columns(root, self.info, self.episodes, gaps)
        self._file_rows: NDArray[np.int64] | None = None
        """frame → row of the data files; None where they are the same."""
        self._before = self._columns
        if gaps:
            self._columns, counted, self._file_rows = without_gaps(root, self._columns, self.episodes)
            self.episodes = tuple(counted)
        self._starts = np.array([episode.from_index for episode in self.episodes])
        self._videos: OrderedDict[str, VideoReader] = OrderedDict()
        self._stats: Stats | None = None
        self._stored: tuple[Path, pa.Table] | None = None

    @property
    def fps(self) -> float:
        return self.info.fps

    @property
    def features(self) -> Mapping[str, Feature]:
        return self.info.features

    @property
    def camera_keys(self) -> tuple[str, ...]:
        return self.info.camera_keys

    @property
    def stats(self) -> Stats:
        """Statistics of the whole dataset as stored (v2.1: put together from its episodes')."""
        if self._stats is None:
            self._stats = read_stats(self.root, self.info)
        return self._stats

    @property
    def files(self) -> tuple[Path, ...]:
        """The data files in the order of their frames."""
        return tuple(file.path for file in self._files)

    def __len__(self) -> int:
        return self.episodes[-1].to_index

    def __enter__(self) -> Dataset:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        while self._videos:
            self._videos.popitem()[1].close()

    def column(self, key: str) -> NDArray:
        """All frames of a feature that is no camera, read-only: [frames, *shape]; index columns [frames]. A wide one is
        read anew each time."""
        if key in self._columns:
            return self._columns[key]
        return self._wide(key)

    def column_in_files(self, key: str) -> NDArray:
        """As `column`, with the numbers of the files where frames and episodes are counted anew."""
        if key not in self._before:
            return self._wide(key)
        before = self._before[key]
        return before if self._file_rows is None else before[self._file_rows]

    def episode_of(self, index: int) -> Episode:
        """The episode that frame `index` of the whole set belongs to."""
        self._check_index(index)
        return self.episodes[int(np.searchsorted(self._starts, index, side="right")) - 1]

    def task_of(self, index: int) -> str:
        self._check_index(index)
        return self.task_text(int(self._columns["task_index"][index]))

    def task_text(self, number: int) -> str:
        """The text of a task_index that frames have."""
        if number not in self.tasks:
            raise DatasetError(
                f"{self.root}: frames have task_index {number}, which meta does not name; run `vla-data verify`"
            )
        return self.tasks[number]

    def image(self, camera: str, index: int) -> NDArray[np.uint8]:
        """One picture: uint8 [height, width, 3], RGB. Fast when indices rise."""
        feature = self.features.get(camera)
        if feature is None or not feature.is_camera:
            raise DatasetError(f"{self.root}: no camera {camera!r}; there are {list(self.camera_keys)}")
        episode = self.episode_of(index)
        if feature.dtype == "image":
            return stored_image(self._files, camera, self.row(index))
        span = episode.videos[camera]
        return self._video(span.path).frame_at(span.from_s + (index - episode.from_index) / self.fps)

    def frame(self, index: int, cameras: Iterable[str] | None = None) -> Sample:
        """Frame `index` of the whole set with the given cameras (all when None; `()` decodes nothing)."""
        self._check_index(index)
        keys = self.camera_keys if cameras is None else tuple(cameras)
        return Sample(
            index=index,
            episode_index=int(self._columns["episode_index"][index]),
            frame_index=int(self._columns["frame_index"][index]),
            timestamp=float(self._columns["timestamp"][index]),
            task_index=int(self._columns["task_index"][index]),
            task=self.task_of(index),
            values={key: self._columns[key][index] for key in self.info.value_keys if key in self._columns},
            images={key: self.image(key, index) for key in keys},
        )

    def frames(self, episode: int | None = None, cameras: Iterable[str] | None = None) -> Iterator[Sample]:
        """All frames in order, of one episode or of the whole set."""
        if episode is not None and not 0 <= episode < len(self.episodes):
            raise DatasetError(f"{self.root}: no episode {episode}; there are 0 to {len(self.episodes) - 1}")
        first = 0 if episode is None else self.episodes[episode].from_index
        last = len(self) if episode is None else self.episodes[episode].to_index
        keys = None if cameras is None else tuple(cameras)
        for index in range(first, last):
            yield self.frame(index, keys)

    def chunk(self, index: int, horizon: int, key: str = "action") -> tuple[NDArray, NDArray[np.bool_]]:
        """`horizon` rows of `key` from frame `index` on, clamped to the episode's last frame.

        Returns ([horizon, *shape], is_pad [horizon]); is_pad is True behind the end.
        """
        return self._rows(index, np.arange(horizon), key)

    def window(self, index: int, delta_timestamps: Mapping[str, Sequence[float]]) -> dict[str, NDArray]:
        """Rows of each key at the given seconds before or after frame `index`, as LeRobot's `delta_timestamps`.

        Returns `key` → [n, ...] (cameras: uint8 [n, height, width, 3]) and `key + "_is_pad"` →
        bool [n]. Deltas must be multiples of 1/fps within 1e-4 s; DatasetError otherwise.
        """
        result: dict[str, NDArray] = {}
        for key, deltas in delta_timestamps.items():
            offsets = self._offsets(key, deltas)
            if key in self.camera_keys:
                rows, is_pad = self._clamped(index, offsets)
                result[key] = np.stack([self.image(key, int(row)) for row in rows])
            else:
                result[key], is_pad = self._rows(index, offsets, key)
            result[f"{key}_is_pad"] = is_pad
        return result

    def _offsets(self, key: str, deltas: Sequence[float]) -> NDArray[np.int64]:
        steps = np.asarray(deltas, dtype=np.float64) * self.fps
        whole = np.round(steps)
        if steps.size == 0 or np.abs(steps - whole).max() > TOLERANCE_S * self.fps:
            raise DatasetError(
                f"delta timestamps of {key} are not multiples of 1/{self.fps} s; give frame numbers / fps"
            )
        return whole.astype(np.int64)

    def _clamped(self, index: int, offsets: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        episode = self.episode_of(index)
        wanted = index + offsets
        rows = np.clip(wanted, episode.from_index, episode.to_index - 1)
        return rows, wanted != rows

    def _rows(self, index: int, offsets: NDArray[np.int64], key: str) -> tuple[NDArray, NDArray[np.bool_]]:
        rows, is_pad = self._clamped(index, offsets)
        return self.column(key)[rows], is_pad

    def row(self, index: int) -> int:
        """The row of the data files, counted through all of them, that holds frame `index`."""
        return index if self._file_rows is None else int(self._file_rows[index])

    def stored_rows(self, episode: Episode, keys: Sequence[str]) -> pa.Table:
        """The columns `keys` of an episode's frames as the data files hold them (pictures and annotations)."""
        first, end = self.row(episode.from_index), self.row(episode.to_index - 1) + 1
        parts = []
        for file in self._files:
            low, high = max(first, file.from_index), min(end, file.to_index)
            if low < high:
                if self._stored is None or self._stored[0] != file.path or self._stored[1].column_names != list(keys):
                    self._stored = file.path, read_table(file.path, list(keys))
                parts.append(self._stored[1].slice(low - file.from_index, high - low))
        return pa.concat_tables(parts)

    def _check_index(self, index: int) -> None:
        if not 0 <= index < len(self):
            raise DatasetError(f"{self.root}: no frame {index}; there are 0 to {len(self) - 1}")

    def _wide(self, key: str) -> NDArray:
        feature = self.features.get(key)
        if feature is None or feature.is_camera:
            there = sorted(name for name, item in self.features.items() if not item.is_camera)
            raise DatasetError(f"{self.root}: no column {key!r}; there are {there}")
        found = wide_column(self._files, key, feature)
        return found if self._file_rows is None else found[self._file_rows]

    def _video(self, path: str) -> VideoReader:
        if path in self._videos:
            self._videos.move_to_end(path)
            return self._videos[path]
        if len(self._videos) >= _OPEN_VIDEOS:
            self._videos.popitem(last=False)[1].close()
        self._videos[path] = VideoReader(self.root / path, self.tolerance_s)
        return self._videos[path]


def open_dataset(path: str | Path, gaps: bool = False, tolerance_s: float = TOLERANCE_S) -> Dataset:
    """Open a LeRobot dataset of v2.0 to v3.0: its folder, or a Hub id. Raises DatasetError naming the file or field.

    gaps: episode numbers may be missing; episodes and frames are counted anew. tolerance_s: how far a picture's time
    may be from its frame's, as LeRobot's argument of that name.
    """
    return Dataset(local_folder(path, "dataset"), gaps, tolerance_s)
