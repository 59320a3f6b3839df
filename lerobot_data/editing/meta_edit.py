# SPDX-License-Identifier: Apache-2.0
"""Change the `meta` folder of a dataset as a whole: edit a copy, then swap the folders."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from vla_edge.errors import DatasetError
from vla_edge.files import partial_path, replace_folder
from vla_edge.lerobot_data import layout, tables
from vla_edge.lerobot_data.episode_table import stats_columns
from vla_edge.lerobot_data.layout import Info
from vla_edge.lerobot_data.meta import episode_files, read_table
from vla_edge.lerobot_data.stats import Stats

T = TypeVar("T")


@contextmanager
def edited_meta(root: Path, folders: Sequence[str] = ("meta",)) -> Iterator[Path]:
    """Yields a folder that holds a copy of `root/meta` (or of these `folders`); when the block ends well the copies
    take their places, one after the other.

    An error inside leaves the dataset as it was.
    """
    copy = partial_path(root / "edit")
    try:
        for name in folders:
            shutil.copytree(root / name, copy / name)
        yield copy
        for name in folders:
            replace_folder(copy / name, root / name)
    finally:
        shutil.rmtree(copy, ignore_errors=True)


def write_task_texts(copy: Path, info: Info, tasks: Mapping[int, str]) -> None:
    """The tasks file and the count in info.json."""
    if info.version != layout.V30:
        tables.write_jsonl(copy / layout.V21_TASKS_FILE, [{"task_index": i, "task": text} for i, text in tasks.items()])
    else:
        tables.write_tasks(copy / layout.TASKS_FILE, tasks)
    tables.write_json(copy / layout.INFO_FILE, dict(info.raw) | {"total_tasks": len(tasks)})


def set_task(files: Iterable[Path], task: int, episodes: Collection[int]) -> None:
    """Give all frames of `episodes` in the data files `files` the task number `task`."""
    for path in files:
        table = read_table(path)
        numbers, owners = table["task_index"].to_pylist(), table["episode_index"].to_pylist()
        cells = [task if owner in episodes else number for number, owner in zip(numbers, owners)]
        if cells != numbers:
            kind = table.schema.field("task_index").type
            _replace_columns(path, table, {"task_index": pa.array(cells, kind)})


def set_texts(copy: Path, info: Info, change: Callable[[int, list[str]], list[str]]) -> None:
    """Change the task lists of all episodes. change: an episode's number and its texts → its new texts."""
    if info.version != layout.V30:
        path = copy / layout.V21_EPISODES_FILE
        rows = [row | {"tasks": change(row.get("episode_index", -1), row["tasks"])} for row in layout.read_jsonl(path)]
        tables.write_jsonl(path, rows)
        return
    for path in episode_files(copy):
        table = read_table(path)
        texts = list(map(change, table["episode_index"].to_pylist(), table["tasks"].to_pylist()))
        _replace_columns(path, table, {"tasks": pa.array(texts, tables.nested(pa.string(), 1))})


def write_statistics(copy: Path, info: Info, episodes: Mapping[int, Stats], total: Stats) -> None:
    """Per-episode statistics, and those of the whole set where the version has a file for them.

    What is not computed here (statistics of other names, of text columns) stays as it is.
    """
    if info.version != layout.V30:
        path = copy / layout.V21_STATS_FILE
        kept = {row.get("episode_index"): row.get("stats") for row in _readable(path, layout.read_jsonl) or ()}
        rows = [
            {"episode_index": index, "stats": _laid_over(kept.get(index), stats)} for index, stats in episodes.items()
        ]
        tables.write_jsonl(path, rows)
        return
    path = copy / layout.STATS_FILE
    tables.write_json(path, _laid_over(_readable(path, layout.read_json), total))
    for path in episode_files(copy):
        table = read_table(path)
        indices = table["episode_index"].to_pylist()
        _replace_columns(path, table, stats_columns([episodes[index] for index in indices]))


def _readable(path: Path, read: Callable[[Path], T]) -> T | None:
    """What is stored; None where it is missing or damaged and about to be replaced."""
    try:
        return read(path)
    except DatasetError:
        return None


def _laid_over(stored: object, computed: Stats) -> dict[str, Any]:
    """The computed statistics as JSON values over the stored ones; what is damaged there is not kept."""
    kept = {key: entry for key, entry in stored.items() if isinstance(entry, dict)} if isinstance(stored, dict) else {}
    return kept | {key: kept.get(key, {}) | entry for key, entry in tables.stats_to_json(computed).items()}


def _replace_columns(path: Path, table: pa.Table, columns: Mapping[str, pa.Array]) -> None:
    for name, cells in columns.items():
        field = pa.field(name, cells.type)
        position = table.schema.get_field_index(name)
        table = table.append_column(field, cells) if position < 0 else table.set_column(position, field, cells)
    pq.write_table(table, path, compression="snappy")
