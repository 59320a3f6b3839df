# SPDX-License-Identifier: Apache-2.0
"""The parquet tables of v3.0 as LeRobot writes them: frames, episodes, tasks; and files that roll over by size."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vla_edge.lerobot_data import layout
from vla_edge.lerobot_data.layout import INDEX_FEATURES, Feature, Location
from vla_edge.lerobot_data.stats import Stats

MB = 1024 * 1024
IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_TASK_INDEX_NAME = "__index_level_0__"


class TableFiles:
    """Tables appended to `chunk-…/file-….parquet` files; a table that would pass the limit opens the next file.

    Each table becomes one row group. `place` is asked first, so that a row can
    name the file it will stand in.
    """

    def __init__(self, root: Path, pattern: str, limit_bytes: float, chunks_size: int) -> None:
        self._root, self._pattern = root, pattern
        self._limit, self._chunks_size = limit_bytes, chunks_size
        self._location = Location()
        self._bytes = 0
        self._writer: pq.ParquetWriter | None = None

    def place(self, size: int) -> Location:
        """Where a table of `size` bytes in memory will be written; closes a file that is full."""
        if self._writer is not None and self._bytes + size > self._limit:
            self._close_file()
            self._location = self._location.next(self._chunks_size)
        return self._location

    def write(self, table: pa.Table) -> None:
        """Append at the place that `place` returned last."""
        if self._writer is None:
            path = self._root / self._location.path(self._pattern)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(path, table.schema, compression="snappy")
        self._writer.write_table(table, row_group_size=max(table.num_rows, 1))
        self._bytes += table.nbytes

    def close(self) -> None:
        self._close_file()

    def _close_file(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer, self._bytes = None, 0


def column_type(key: str, feature: Feature) -> pa.DataType:
    """Arrow type of a feature's column, as LeRobot's v3.0 files have it."""
    if feature.dtype == "image":
        return IMAGE_TYPE
    leaf = pa.string() if feature.dtype == "string" else pa.from_numpy_dtype(np.dtype(feature.dtype))
    depth = 0 if key in INDEX_FEATURES or feature.shape == (1,) else len(feature.shape)
    return nested(leaf, depth)


def frame_schema(features: Mapping[str, Feature]) -> pa.Schema:
    """Columns of a frame table: every feature but videos, in order.

    Image columns are marked for the `datasets` library, which shows them as bytes otherwise.
    """
    stored = {key: feature for key, feature in features.items() if feature.dtype != "video"}
    schema = pa.schema([(key, column_type(key, feature)) for key, feature in stored.items()])
    if not any(feature.dtype == "image" for feature in stored.values()):
        return schema
    described = {key: _huggingface(key, feature) for key, feature in stored.items()}
    return schema.with_metadata({"huggingface": json.dumps({"info": {"features": described}})})


def column_cells(key: str, feature: Feature, values: NDArray | Sequence[Any]) -> pa.Array:
    """A column of frames as Arrow: `values` is [frames, *shape], or image cells for image features."""
    kind = column_type(key, feature)
    if isinstance(values, np.ndarray):
        rows = values.reshape(len(values)) if not pa.types.is_list(kind) else values
        return _array(rows, kind)
    return pa.array(values, kind)


def _array(values: NDArray, kind: pa.DataType) -> pa.Array:
    """[n, a, b …] as nested lists of n rows, without a Python object per number."""
    if not pa.types.is_list(kind):
        return pa.array(values, kind)
    inner = _array(values.reshape(-1, *values.shape[2:]), kind.value_type)
    offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
    return pa.ListArray.from_arrays(pa.array(offsets), inner, type=kind)


def write_tasks(path: Path, tasks: Mapping[int, str]) -> None:
    """`meta/tasks.parquet`: task_index, with the texts as the index that pandas restores."""
    text = {"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object", "metadata": None}
    number = dict.fromkeys(("name", "field_name"), "task_index") | dict.fromkeys(("pandas_type", "numpy_type"), "int64")
    described = {
        "index_columns": [_TASK_INDEX_NAME],
        "column_indexes": [text | {"metadata": {"encoding": "UTF-8"}}],
        "columns": [number | {"metadata": None}, text | {"field_name": _TASK_INDEX_NAME}],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.2.3",
    }
    schema = pa.schema([("task_index", pa.int64()), (_TASK_INDEX_NAME, pa.large_string())])
    table = pa.table({"task_index": list(tasks), _TASK_INDEX_NAME: list(tasks.values())}, schema=schema)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata({"pandas": json.dumps(described)}), path, compression="snappy")


def stats_to_json(stats: Stats) -> dict[str, dict[str, Any]]:
    return {key: {name: value.tolist() for name, value in entry.items()} for key, entry in stats.items()}


def write_json(path: Path, value: Any) -> None:
    """Four spaces of indentation, as LeRobot writes its json files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=4, ensure_ascii=False), encoding="utf-8")


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def info_fields(
    source: Mapping[str, Any], features: Mapping[str, Mapping[str, Any]], data_file_mb: float, video_file_mb: float
) -> dict[str, Any]:
    """`meta/info.json` of v3.0 from a v2.1 one (or the writer's): same fields and order as LeRobot's converter."""
    dropped = ("total_chunks", "total_videos")
    has_video = any(feature["dtype"] == "video" for feature in features.values())
    return {key: value for key, value in source.items() if key not in dropped} | {
        "codebase_version": layout.V30,
        "data_path": layout.DATA_PATH,
        "video_path": layout.VIDEO_PATH if has_video else None,
        "features": dict(features),
        "data_files_size_in_mb": data_file_mb,
        "video_files_size_in_mb": video_file_mb,
    }


def nested(leaf: pa.DataType, depth: int) -> pa.DataType:
    for _ in range(depth):
        leaf = pa.list_(pa.field("element", leaf))
    return leaf


def _huggingface(key: str, feature: Feature) -> dict[str, Any]:
    if feature.dtype == "image":
        return {"_type": "Image"}
    described: dict[str, Any] = {"dtype": feature.dtype, "_type": "Value"}
    kind = column_type(key, feature)
    while pa.types.is_list(kind):
        described = {"feature": described, "_type": "List"}
        kind = kind.value_type
    return described
