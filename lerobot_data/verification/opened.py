# SPDX-License-Identifier: Apache-2.0
"""The parts of a dataset folder that can be read, and what is wrong with those that cannot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from vla_edge.errors import DatasetError
from vla_edge.lerobot_data import layout
from vla_edge.lerobot_data.columns import column_array, data_files
from vla_edge.lerobot_data.layout import INDEX_FEATURES, Info
from vla_edge.lerobot_data.meta import Episode, read_episode_stats, read_episodes, read_stats, read_table, read_tasks
from vla_edge.lerobot_data.stats import Stats
from vla_edge.lerobot_data.tolerance import TOLERANCE_S

T = TypeVar("T")

MOST_PROBLEMS = 10
"""Problems one check names; one is enough to fail it."""


@dataclass(frozen=True, slots=True)
class FrameFile:
    """The index columns of one data file, [rows] each."""

    path: Path
    columns: dict[str, NDArray]

    @property
    def rows(self) -> int:
        return len(self.columns["index"])


@dataclass(slots=True)
class Opened:
    """What could be read of a folder; a part that could not is None and stands in `problems`.

    info also None when the version is not known. Each part is read once for all checks.
    """

    root: Path
    tolerance_s: float = TOLERANCE_S
    info: Info | None = None
    tasks: dict[int, str] | None = None
    episodes: list[Episode] | None = None
    stats: Stats | None = None
    episode_stats: dict[int, Stats] | None = None
    frames: list[FrameFile] | None = None
    meta_problems: list[str] = field(default_factory=list)
    frame_problems: list[str] = field(default_factory=list)


def open_parts(root: Path, tolerance_s: float = TOLERANCE_S) -> Opened:
    opened = Opened(root, tolerance_s)
    meta = opened.meta_problems
    opened.info = info = _try(meta, lambda: layout.read_info(root))
    if info is None:
        return opened
    opened.tasks = _try(meta, lambda: read_tasks(root, info))
    opened.episodes = episodes = _try(meta, lambda: read_episodes(root, info))
    opened.stats = _try(meta, lambda: read_stats(root, info))
    opened.episode_stats = _try(meta, lambda: read_episode_stats(root, info))
    if episodes is not None:
        opened.frames = _try(opened.frame_problems, lambda: _frame_files(root, info, episodes))
    return opened


def _try(problems: list[str], read: Callable[[], T]) -> T | None:
    try:
        return read()
    except DatasetError as error:
        if str(error) not in problems:
            problems.append(str(error))
        return None


def _frame_files(root: Path, info: Info, episodes: Sequence[Episode]) -> list[FrameFile]:
    files = []
    for path in data_files(root, info, episodes):
        table = read_table(path, list(INDEX_FEATURES))
        columns = {key: column_array(path, key, feature, table[key]) for key, feature in INDEX_FEATURES.items()}
        files.append(FrameFile(path, columns))
    return files


def joined(frames: Sequence[FrameFile], key: str) -> NDArray:
    """An index column over all files, in their order."""
    return np.concatenate([file.columns[key] for file in frames]) if frames else np.empty(0)
