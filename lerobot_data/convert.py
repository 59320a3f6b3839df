"""LeRobot v2.1 → v3.0, out of place: written beside the target, verified, compared with the source, renamed.

Differs from LeRobot 0.4.4's converter where that is wrong: the episode that
opens a new data file is recorded with that file's number, not the one before.
Videos that cannot stand in one file (another codec, size or header) open the
next instead of being joined into one that does not decode.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from math import inf
from pathlib import Path

import pyarrow as pa

from vla_edge.errors import CheckFailed, ConfigError, DatasetError
from vla_edge.files import new_folder
from vla_edge.lerobot_data import layout, tables
from vla_edge.lerobot_data.columns import column_array
from vla_edge.lerobot_data.compare_data import compare_datasets
from vla_edge.lerobot_data.episode_table import EpisodeRow, EpisodeTable
from vla_edge.lerobot_data.layout import Info, Location
from vla_edge.lerobot_data.meta import Episode, read_episode_stats, read_episodes, read_table, read_tasks
from vla_edge.lerobot_data.reader import open_dataset
from vla_edge.lerobot_data.recompute import completed
from vla_edge.lerobot_data.stats import Stats, aggregate
from vla_edge.lerobot_data.verification.verify import verify_dataset
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


def convert_dataset(
    source: Path, target: Path, sizes: FileSizes = FileSizes(), progress: Progress | None = None
) -> Info:
    """Write the dataset `source`, v2.0 or v2.1, as v3.0 to `target`, which must not exist. Returns the new info.

    The source is only read. Statistics that it lacks are computed on the way (quantiles of numbers, everything of a
    feature or an episode without any); what it has stays as it is. Raises DatasetError for a
    source that is of another version or damaged, CheckFailed when the result does
    not pass verification; either way nothing is left at the target.
    """
    info = layout.read_info(source)
    if info.version == layout.V30:
        raise DatasetError(f"{source} is {info.version} already; there is nothing to convert")
    if info.left_out:
        key, why = next(iter(info.left_out.items()))
        raise DatasetError(
            f"{source}: {key} is {why}, which convert does not carry over; remove it from info.json first"
        )
    if source.resolve() in target.resolve().parents:
        raise DatasetError(f"{target} lies inside the source {source}; choose a folder outside")
    episodes = read_episodes(source, info)
    if not episodes:
        raise DatasetError(f"{source / layout.V21_EPISODES_FILE} lists no episode; there is nothing to convert")
    with new_folder(target, DatasetError) as folder:
        _write(source, info, episodes, folder, sizes, progress)
        report = verify_dataset(folder)
        if not report.passed:
            raise CheckFailed(
                f"the conversion of {source} does not verify: {report.first_problem}; the source may be damaged, "
                f"run `vla-data verify` on it"
            )
        differences = compare_datasets(source, folder, completed=True)
        if differences:
            raise CheckFailed(f"the conversion of {source} differs from it: {differences[0]}; nothing was written")
    return layout.read_info(target)


def _write(
    source: Path, info: Info, episodes: list[Episode], folder: Path, sizes: FileSizes, progress: Progress | None
) -> None:
    stored = read_episode_stats(source, info) if (source / layout.V21_STATS_FILE).is_file() else {}
    stats: dict[int, Stats] = {}
    data = tables.TableFiles(folder, layout.DATA_PATH, sizes.data_file_mb * tables.MB, info.chunks_size)
    videos = {
        key: VideoFiles(folder, key, sizes.video_file_mb * tables.MB, info.chunks_size) for key in info.video_keys
    }
    rows = EpisodeTable(folder, sizes.data_file_mb, info.chunks_size)
    with ExitStack() as stack:
        for close in (data.close, rows.close, *(files.close for files in videos.values())):
            stack.callback(close)
        dataset = stack.enter_context(open_dataset(source))
        for episode in episodes:
            stats[episode.index] = completed(dataset, stored, episode)
            place = _append_frames(source, info, episode, data)
            spans = {key: files.append(source / episode.videos[key].path) for key, files in videos.items()}
            span = episode.from_index, episode.to_index
            rows.append(EpisodeRow(episode.index, place, *span, spans, episode.tasks, stats[episode.index]))
            if progress is not None:
                progress(episode.index + 1, len(episodes))
    tables.write_tasks(folder / layout.TASKS_FILE, read_tasks(source, info))
    total = aggregate([stats[episode.index] for episode in episodes])
    tables.write_json(folder / layout.STATS_FILE, tables.stats_to_json(total))
    features = {
        key: dict(value) if value["dtype"] == "video" else dict(value) | {"fps": info.fps}
        for key, value in info.raw["features"].items()
    }
    fields = dict(info.raw) | {"fps": info.fps}
    tables.write_json(
        folder / layout.INFO_FILE, tables.info_fields(fields, features, sizes.data_file_mb, sizes.video_file_mb)
    )


def _append_frames(source: Path, info: Info, episode: Episode, data: tables.TableFiles) -> Location:
    path = source / episode.data_path
    table = read_table(path)
    schema = tables.frame_schema(info.features)
    odd = sorted(set(table.column_names) ^ set(schema.names))
    if odd:
        raise DatasetError(f"{path}: columns {odd} stand only in the file or only in info.json; restore one of them")
    if table.num_rows != episode.length:
        raise DatasetError(
            f"{path}: {table.num_rows} rows, {layout.V21_EPISODES_FILE} says {episode.length}; restore one of them"
        )
    columns = {}
    for key in schema.names:
        feature = info.features[key]
        if feature.dtype == "image":
            columns[key] = _image_cells(path, key, table[key])
        else:
            columns[key] = tables.column_cells(key, feature, column_array(path, key, feature, table[key]))
    written = pa.table(columns, schema=schema)
    place = data.place(written.nbytes)
    data.write(written)
    return place


def _image_cells(path: Path, key: str, column: pa.ChunkedArray) -> pa.Array:
    cells = column.combine_chunks()
    try:
        return cells.cast(tables.IMAGE_TYPE)
    except pa.ArrowException as error:
        raise DatasetError(f"{path}: column {key} holds no images ({error}); restore the file") from None
