# SPDX-License-Identifier: Apache-2.0
"""`meta/episodes` of v3.0: one row per episode with its place in the files and its statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from vla_edge.errors import DatasetError
from vla_edge.lerobot_data import layout
from vla_edge.lerobot_data.layout import Location
from vla_edge.lerobot_data.stats import Stats
from vla_edge.lerobot_data.tables import MB, TableFiles, nested

_ROWS_PER_GROUP = 100


@dataclass(frozen=True, slots=True)
class EpisodeRow:
    """One episode as the table holds it. videos: camera → (file, from seconds, to seconds)."""

    index: int
    data: Location
    from_index: int
    to_index: int
    videos: Mapping[str, tuple[Location, float, float]]
    tasks: Sequence[str]
    stats: Stats


class EpisodeTable:
    """Writes the rows in groups of a hundred; each row names the file it stands in itself."""

    def __init__(self, root: Path, limit_mb: float, chunks_size: int) -> None:
        self._files = TableFiles(root, layout.EPISODES_PATH, limit_mb * MB, chunks_size)
        self._rows: list[EpisodeRow] = []

    def append(self, row: EpisodeRow) -> None:
        self._rows.append(row)
        if len(self._rows) == _ROWS_PER_GROUP:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._files.close()

    def _flush(self) -> None:
        if not self._rows:
            return
        table = episodes_table(self._rows)
        place = self._files.place(table.nbytes)
        for name, number in (("chunk", place.chunk), ("file", place.file)):
            cells = pa.array([number] * table.num_rows, pa.int64())
            table = table.append_column(f"meta/episodes/{name}_index", cells)
        self._files.write(table)
        self._rows = []


def episodes_table(rows: Sequence[EpisodeRow]) -> pa.Table:
    """Columns in the order of LeRobot's converter, without the two that name the table's own file."""
    columns: dict[str, pa.Array] = {
        "episode_index": pa.array([row.index for row in rows], pa.int64()),
        "data/chunk_index": pa.array([row.data.chunk for row in rows], pa.int64()),
        "data/file_index": pa.array([row.data.file for row in rows], pa.int64()),
        "dataset_from_index": pa.array([row.from_index for row in rows], pa.int64()),
        "dataset_to_index": pa.array([row.to_index for row in rows], pa.int64()),
    }
    for key in rows[0].videos:
        places = [row.videos[key] for row in rows]
        columns[f"videos/{key}/chunk_index"] = pa.array([place.chunk for place, _, _ in places], pa.int64())
        columns[f"videos/{key}/file_index"] = pa.array([place.file for place, _, _ in places], pa.int64())
        columns[f"videos/{key}/from_timestamp"] = pa.array([start for _, start, _ in places], pa.float64())
        columns[f"videos/{key}/to_timestamp"] = pa.array([end for _, _, end in places], pa.float64())
    columns["tasks"] = pa.array([list(row.tasks) for row in rows], nested(pa.string(), 1))
    columns["length"] = pa.array([row.to_index - row.from_index for row in rows], pa.int64())
    columns |= stats_columns([row.stats for row in rows])
    return pa.table(columns)


def stats_columns(stats: Sequence[Stats]) -> dict[str, pa.Array]:
    """`stats/<feature>/<statistic>` as nested lists; whole numbers stay int64, as LeRobot has them."""
    columns: dict[str, pa.Array] = {}
    names = {(key, name) for key, entry in stats[0].items() for name in entry}
    if any({(key, name) for key, entry in part.items() for name in entry} != names for part in stats):
        raise DatasetError("episodes have statistics of different features; run `vla-data stats --write` on the source")
    for key in stats[0]:
        for name in stats[0][key]:
            values = [entry[key][name] for entry in stats]
            leaf = pa.from_numpy_dtype(_stored_dtype(values))
            columns[f"stats/{key}/{name}"] = pa.array([v.tolist() for v in values], nested(leaf, values[0].ndim))
    return columns


def _stored_dtype(values: Sequence[np.ndarray]) -> np.dtype:
    kinds = {value.dtype.kind for value in values}
    if "f" in kinds:
        return np.dtype(np.float64)
    return np.dtype(bool) if kinds == {"b"} else np.dtype(np.int64)
