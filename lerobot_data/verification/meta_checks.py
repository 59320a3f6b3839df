# SPDX-License-Identifier: Apache-2.0
"""Checks of `vla-data verify` that read `meta` and the schemas; each returns its problems in words."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vla_edge.lerobot_data import layout
from vla_edge.lerobot_data.layout import INDEX_FEATURES
from vla_edge.lerobot_data.meta import episode_files, read_table
from vla_edge.lerobot_data.tables import column_type
from vla_edge.lerobot_data.verification.opened import MOST_PROBLEMS, Opened, joined


def folders(opened: Opened) -> list[str]:
    wanted = ["meta", "data"]
    if opened.info is not None and opened.info.video_keys:
        wanted.append("videos")
    if opened.info is not None and opened.info.version == layout.V30:
        wanted.append(layout.EPISODES_FOLDER)
    return [f"folder {name} is missing" for name in wanted if not (opened.root / name).is_dir()]


def meta_files(opened: Opened) -> list[str]:
    root = opened.root
    old = (root / layout.V21_EPISODES_FILE).is_file() or (root / layout.V21_TASKS_FILE).is_file()
    known = opened.info.version if opened.info else (layout.V21 if old else layout.V30)
    wanted = [layout.INFO_FILE]
    if known != layout.V30:
        wanted += [layout.V21_EPISODES_FILE, layout.V21_TASKS_FILE]
    if known == layout.V30:
        wanted += [layout.TASKS_FILE]
    wanted += [layout.V21_STATS_FILE if known == layout.V21 else layout.STATS_FILE]
    problems = [f"{name} is missing" for name in wanted if not (root / name).is_file()]
    if known == layout.V30 and not list((root / layout.EPISODES_FOLDER).glob("*/*.parquet")):
        problems.append(f"{layout.EPISODES_FOLDER} holds no parquet file")
    return problems


def metadata(opened: Opened) -> list[str]:
    return list(opened.meta_problems)


def version(opened: Opened) -> list[str]:
    raw = layout.read_json(opened.root / layout.INFO_FILE)
    stated = raw.get("codebase_version") if isinstance(raw, dict) else None
    if stated not in layout.VERSIONS:
        return [f"codebase_version is {stated!r}; {', '.join(layout.VERSIONS)} are known"]
    has_old = (opened.root / layout.V21_EPISODES_FILE).is_file()
    if has_old != (stated != layout.V30):
        return [f"codebase_version is {stated}, but {layout.V21_EPISODES_FILE} is {'there' if has_old else 'missing'}"]
    return []


def features(opened: Opened) -> list[str]:
    assert opened.info is not None
    info, problems = opened.info, []
    problems += [f"feature {key} is missing" for key in INDEX_FEATURES if key not in info.features]
    for key in info.camera_keys:
        height, width, _ = info.features[key].shape
        stated = info.features[key].video_info or {}
        size = stated.get("video.height", height), stated.get("video.width", width)
        if size != (height, width):
            problems.append(
                f"feature {key} has shape {list(info.features[key].shape)}, its video info says {list(size)}"
            )
    stored = {key: feature for key, feature in info.features.items() if feature.dtype != "video"}
    for path in sorted((opened.root / "data").glob("*/*.parquet")):
        name = path.relative_to(opened.root)
        try:
            schema = pq.read_schema(path)
        except (pa.ArrowException, OSError) as error:
            problems.append(f"{name} is not parquet ({error})")
            continue
        known = {*stored, *info.left_out}
        problems += [f"{name}: column {key} is not in info.json" for key in schema.names if key not in known]
        problems += [f"{name}: column {key} is missing" for key in stored if key not in schema.names]
    return problems[:MOST_PROBLEMS]


def untidy_info(opened: Opened) -> list[str]:
    """What is read although info.json says it in another way than LeRobot does."""
    info = opened.info
    assert info is not None
    problems = [f"{key} is left out: {why}" for key, why in info.left_out.items()]
    if info.total_tasks is None:
        problems.append("total_tasks is missing in info.json")
    stored = {key: feature for key, feature in info.features.items() if feature.dtype != "video"}
    for path in sorted((opened.root / "data").glob("*/*.parquet")):
        try:
            schema = pq.read_schema(path)
        except (pa.ArrowException, OSError):
            continue  # told by the check of the features
        for key in set(stored) & set(schema.names):
            found, wanted = _leaf(schema.field(key).type), _leaf(column_type(key, stored[key]))
            if found != wanted:
                problems.append(
                    f"{path.relative_to(opened.root)}: column {key} is {found}, info.json says {stored[key].dtype}; it "
                    "is read as that, `vla-data convert` of v2.1 writes it as that"
                )
    return problems[:MOST_PROBLEMS]


def _leaf(kind: pa.DataType) -> str:
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind = kind.value_type
    if pa.types.is_struct(kind):
        return "image"
    return "string" if pa.types.is_large_string(kind) else str(kind)


def counts(opened: Opened) -> list[str]:
    info, episodes, tasks, frames = opened.info, opened.episodes, opened.tasks, opened.frames
    assert info is not None and episodes is not None and tasks is not None and frames is not None
    rows = sum(file.rows for file in frames)
    found = [
        ("total_episodes", info.total_episodes, len(episodes), "episodes in meta"),
        ("total_frames", info.total_frames, sum(item.length for item in episodes), "frames of all episodes in meta"),
        ("total_frames", info.total_frames, rows, "rows in data files"),
        ("total_tasks", len(tasks) if info.total_tasks is None else info.total_tasks, len(tasks), "tasks in meta"),
    ]
    if info.version == layout.V21 and "total_videos" in info.raw:
        found.append(("total_videos", info.raw["total_videos"], len(episodes) * len(info.video_keys), "videos named"))
    problems = [
        f"{name} is {stated}, there are {count} {what}" for name, stated, count, what in found if stated != count
    ]
    if not episodes:
        problems.append("there is no episode")
    found_rows = dict(zip(*(part.tolist() for part in np.unique(joined(frames, "episode_index"), return_counts=True))))
    for episode in episodes:
        if found_rows.get(episode.index, 0) != episode.length:
            problems.append(
                f"episode {episode.index} has {found_rows.get(episode.index, 0)} rows, meta says {episode.length}"
            )
    if info.version == layout.V30:
        for path in episode_files(opened.root):
            table = read_table(path, ["episode_index", "length"])
            lengths = {episode.index: episode.length for episode in episodes}
            problems += [
                f"episode {number}: length {length}, its indices say {lengths[number]}"
                for number, length in zip(table["episode_index"].to_pylist(), table["length"].to_pylist())
                if length != lengths[number]
            ]
    splits = info.raw.get("splits")
    for name, span in (splits if isinstance(splits, dict) else {}).items():
        first, _, last = str(span).partition(":")
        if not (first.isdigit() and last.isdigit() and int(first) <= int(last) <= len(episodes)):
            problems.append(f"split {name} is {span!r}, there are {len(episodes)} episodes")
    return problems[:MOST_PROBLEMS]
