# SPDX-License-Identifier: Apache-2.0
"""The frame tables of a dataset as numpy columns, checked against the features and the episodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vla_edge.errors import DatasetError
from vla_edge.lerobot_data import layout
from vla_edge.lerobot_data.layout import INDEX_FEATURES, Feature, Info
from vla_edge.lerobot_data.meta import Episode, read_table

WIDEST = 1024
"""Numbers a frame that a column held in memory may have."""


@dataclass(slots=True)
class FileRows:
    """One parquet file and the frames it holds; keeps each camera's row group that was read last."""

    path: Path
    from_index: int
    to_index: int
    _groups: dict[str, tuple[int, pa.Array]] = field(default_factory=dict, repr=False)

    def image_cell(self, camera: str, index: int) -> object:
        """The stored cell of an image feature, {"bytes": ..., "path": ...} when it is sound."""
        row = index - self.from_index
        first, cells = self._groups.get(camera, (0, ()))
        if not first <= row < first + len(cells):
            first, cells = self._groups[camera] = self._read_group(camera, row)
        return cells[row - first].as_py()

    def _read_group(self, camera: str, row: int) -> tuple[int, pa.Array]:
        with pq.ParquetFile(self.path) as file:
            first = 0
            for group in range(file.metadata.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if row < first + rows:
                    table = file.read_row_group(group, columns=[camera])
                    if camera not in table.column_names:
                        raise DatasetError(f"{self.path}: column {camera} is missing; restore the file")
                    return first, table[camera].combine_chunks()
                first += rows
        raise DatasetError(f"{self.path}: row {row} is missing; restore the file")


def data_files(root: Path, info: Info, episodes: Sequence[Episode]) -> list[Path]:
    """The frame tables in the order of their frames: by episode (v2.1) or by chunk and file number (v3.0)."""
    if info.version != layout.V30:
        return [root / episode.data_path for episode in episodes]
    files = sorted((root / "data").glob("*/*.parquet"))
    if not files:
        raise DatasetError(f"{root / 'data'} holds no parquet file; restore it from the source of the dataset")
    return files


def read_columns(
    root: Path, info: Info, episodes: Sequence[Episode], gaps: bool = False
) -> tuple[dict[str, NDArray], list[FileRows]]:
    """All columns that are no cameras and not wide, [rows, *shape] (index columns [rows]), and where each file's rows
    lie.

    Frames are taken by their position, as LeRobot does, so a wrong file number in
    `meta/episodes` does no harm here (`vla-data verify` tells). Raises DatasetError
    when rows and meta disagree, which is not looked at with `gaps`.
    """
    keys = [key for key, feature in info.features.items() if not (feature.is_camera or is_wide(feature))]
    for key in INDEX_FEATURES:
        if key not in keys:
            raise DatasetError(f"{root / layout.INFO_FILE}: feature {key} is missing; restore the file")
    parts: dict[str, list[NDArray]] = {key: [] for key in keys}
    files: list[FileRows] = []
    start = 0
    for path in data_files(root, info, episodes):
        table = read_table(path, keys)
        for key in keys:
            parts[key].append(column_array(path, key, info.features[key], table[key]))
        files.append(FileRows(path, start, start + table.num_rows))
        start += table.num_rows
    columns = {key: np.concatenate(arrays) if arrays else np.empty(0) for key, arrays in parts.items()}
    if not gaps:
        _check_against_episodes(root, columns, episodes, start)
    for array in columns.values():
        array.flags.writeable = False
    return columns, files


def is_wide(feature: Feature) -> bool:
    """Whether a column is larger than memory should hold of every frame: pictures and depth kept as numbers."""
    return prod(feature.shape) > WIDEST


def wide_column(files: Sequence[FileRows], key: str, feature: Feature) -> NDArray:
    """A wide column [rows, *shape], read now."""
    found = np.concatenate([column_array(file.path, key, feature, read_table(file.path, [key])[key]) for file in files])
    found.flags.writeable = False
    return found


def without_gaps(
    root: Path, columns: dict[str, NDArray], episodes: Sequence[Episode]
) -> tuple[dict[str, NDArray], list[Episode], NDArray[np.int64]]:
    """Columns and episodes numbered from 0 on without a gap, and the row of the files that each frame stands in.

    Rows of episodes that meta does not name are left out. Raises DatasetError for an episode that is not whole.
    """
    counted: list[Episode] = []
    parts: list[NDArray[np.int64]] = []
    start = 0
    for position, episode in enumerate(episodes):
        rows = np.flatnonzero(columns["episode_index"] == episode.index)
        if not rows.size or len(rows) != episode.length or (np.diff(columns["frame_index"][rows]) != 1).any():
            raise DatasetError(
                f"{root}: episode {episode.index} has {len(rows)} frames in its data file, meta says {episode.length}; "
                "numbers can be closed up, lost frames cannot: restore the files"
            )
        end = start + episode.length
        counted.append(replace(episode, index=position, from_index=start, to_index=end))
        parts.append(rows)
        start = end
    rows = np.concatenate(parts)
    columns = {key: array[rows] for key, array in columns.items()}
    columns["index"] = np.arange(start)
    columns["episode_index"] = np.repeat(np.arange(len(counted)), [episode.length for episode in counted])
    for array in columns.values():
        array.flags.writeable = False
    return columns, counted, rows


def column_array(path: Path, key: str, feature: Feature, column: pa.ChunkedArray) -> NDArray:
    """A parquet column as [rows, *shape] of the feature's dtype; index columns and texts as [rows].

    Raises DatasetError when it does not fit the feature.
    """
    rows = len(column)
    flat = column.combine_chunks()
    if isinstance(flat, pa.ExtensionArray):
        flat = flat.storage
    holes = flat.null_count
    while pa.types.is_list(flat.type) or pa.types.is_large_list(flat.type) or pa.types.is_fixed_size_list(flat.type):
        flat = flat.flatten()
        holes += flat.null_count
    if holes:
        raise DatasetError(f"{path}: column {key} has {holes} empty cells; restore the file")
    if feature.dtype == "string":
        return np.array(flat.to_pylist(), dtype=object)
    try:
        values = flat.to_numpy(zero_copy_only=False)
    except pa.ArrowException as error:
        raise DatasetError(f"{path}: column {key} is not numbers ({error}); restore the file") from None
    values = _as_declared(path, key, values, feature)
    shape = (rows,) if key in INDEX_FEATURES else (rows, *feature.shape)
    if values.size != int(np.prod(shape)):
        raise DatasetError(
            f"{path}: column {key} holds {values.size} numbers in {rows} rows, info.json says {list(feature.shape)} "
            "each"
        )
    return values.reshape(shape)


def _as_declared(path: Path, key: str, values: NDArray, feature: Feature) -> NDArray:
    """Numbers in the type info.json says: any float as another float, everything else where no value changes."""
    wanted = feature.numpy_dtype
    if values.dtype == wanted:
        return values
    fits = values.dtype.kind in "iufb" and wanted.kind in "iufb"
    with np.errstate(invalid="ignore", over="ignore"):
        cast = values.astype(wanted) if fits else values
        if values.dtype.kind == wanted.kind == "f":
            fits = bool((np.isfinite(cast) | ~np.isfinite(values)).all())
        else:
            fits = fits and bool((cast.astype(values.dtype) == values).all())
    if not fits:
        raise DatasetError(
            f"{path}: column {key} is {values.dtype}, info.json says {feature.dtype}, and a value would change; "
            "restore "
            "the file"
        )
    return cast


def _check_against_episodes(root: Path, columns: Mapping[str, NDArray], episodes: Sequence[Episode], rows: int) -> None:
    expected = 0
    for episode in episodes:
        if episode.from_index != expected or episode.to_index <= episode.from_index:
            raise DatasetError(
                f"{root}: episode {episode.index} has frames {episode.from_index} to {episode.to_index}; "
                f"it must start at {expected} and hold one at least; run `vla-data verify`"
            )
        expected = episode.to_index
    if rows != expected:
        raise DatasetError(f"{root}: data files hold {rows} frames, meta says {expected}; run `vla-data verify`")
    wrong = np.flatnonzero(columns["index"] != np.arange(rows))
    if wrong.size:
        raise DatasetError(
            f"{root}: row {wrong[0]} of the data files has index {columns['index'][wrong[0]]}; run `vla-data verify`"
        )
    owner = np.repeat(np.arange(len(episodes)), [episode.length for episode in episodes])
    wrong = np.flatnonzero(columns["episode_index"] != owner)
    if wrong.size:
        raise DatasetError(
            f"{root}: frame {wrong[0]} has episode_index {columns['episode_index'][wrong[0]]}, "
            f"meta says {owner[wrong[0]]}; run `vla-data verify`"
        )


def stored_image(files: Sequence[FileRows], camera: str, index: int) -> NDArray[np.uint8]:
    """Decode a picture kept inside a parquet file: uint8 [height, width, 3], RGB."""
    place = next(file for file in files if file.from_index <= index < file.to_index)
    cell = place.image_cell(camera, index)
    data = cell.get("bytes") if isinstance(cell, Mapping) else None
    if not isinstance(data, bytes):
        raise DatasetError(
            f"{place.path}: column {camera} row {index - place.from_index} holds no image bytes; restore the file"
        )
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if picture is None:
        raise DatasetError(
            f"{place.path}: column {camera} row {index - place.from_index} is not a picture; restore the file"
        )
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), np.uint8)
