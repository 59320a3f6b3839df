# SPDX-License-Identifier: Apache-2.0
"""Checks of `vla-data verify` that read the frames and their pictures; each returns its problems in words."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vla_edge.errors import DatasetError
from vla_edge.lerobot_data import layout
from vla_edge.lerobot_data.columns import FileRows, stored_image
from vla_edge.lerobot_data.meta import Episode, episode_files, read_table
from vla_edge.lerobot_data.reader import open_dataset
from vla_edge.lerobot_data.tolerance import TOLERANCE_S
from vla_edge.lerobot_data.verification.opened import MOST_PROBLEMS, Opened, joined
from vla_edge.lerobot_data.video import VideoReader, frame_times


def sample(opened: Opened) -> list[str]:
    """The middle frame of the first, the middle and the last episode, as a user would read it."""
    problems = []
    with open_dataset(opened.root, tolerance_s=opened.tolerance_s) as dataset:
        last = len(dataset.episodes) - 1
        for number in sorted({0, last // 2, last}):
            episode = dataset.episodes[number]
            taken = dataset.frame((episode.from_index + episode.to_index) // 2)
            for key, image in taken.images.items():
                size = (*dataset.features[key].shape[:2], 3)
                if image.shape != size:
                    problems.append(f"episode {number}: {key} is {list(image.shape)}, info.json says {list(size)}")
    return problems


def indices(opened: Opened) -> list[str]:
    episodes, frames = opened.episodes, opened.frames
    assert episodes is not None and frames is not None
    problems, expected = [], 0
    for episode in episodes:
        if episode.from_index != expected:
            problems.append(
                f"episode {episode.index} starts at {episode.from_index}, the one before ends at {expected}"
            )
        expected = episode.to_index
    index, number = joined(frames, "index"), joined(frames, "episode_index")
    wrong = np.flatnonzero(index != np.arange(len(index)))
    if wrong.size:
        problems.append(f"row {wrong[0]} has index {index[wrong[0]]}; {wrong.size} rows differ")
    if (np.diff(number) < 0).any() or len(np.unique(number)) != len(episodes):
        problems.append("episode_index does not count up through the files, each episode in one piece")
    frame = joined(frames, "frame_index")
    starts = np.flatnonzero(np.diff(number, prepend=-1) != 0)
    counted = np.arange(len(frame)) - np.repeat(starts, np.diff(np.append(starts, len(frame))))
    wrong = np.flatnonzero(frame != counted)
    if wrong.size:
        problems.append(
            f"row {wrong[0]} has frame_index {frame[wrong[0]]}, {counted[wrong[0]]} is expected; {wrong.size} rows "
            "differ"
        )
    return problems[:MOST_PROBLEMS]


def files_of_episodes(opened: Opened) -> list[str]:
    """Each episode's rows lie in the data file its row names, and nowhere else; its videos exist."""
    info, episodes, frames = opened.info, opened.episodes, opened.frames
    assert info is not None and episodes is not None and frames is not None
    held = {file.path: np.unique(file.columns["episode_index"]) for file in frames}
    problems = []
    for episode in episodes:
        named = opened.root / episode.data_path
        actual = [path for path, numbers in held.items() if episode.index in numbers]
        if actual != [named]:
            names = [str(path.relative_to(opened.root)) for path in actual] or ["no file"]
            problems.append(
                f"episode {episode.index} is said to lie in {episode.data_path}, it lies in {' and '.join(names)}"
            )
        for key, span in episode.videos.items():
            if not (opened.root / span.path).is_file():
                problems.append(f"episode {episode.index}: video {span.path} of {key} is missing")
    return problems[:MOST_PROBLEMS]


def rows_of_episodes(opened: Opened) -> list[str]:
    """Rows of meta/episodes that name another file than theirs, as LeRobot's merge tool leaves them; nothing reads
    it."""
    problems = []
    assert opened.info is not None
    if opened.info.version == layout.V30:
        for path in episode_files(opened.root):
            table = read_table(path, ["meta/episodes/chunk_index", "meta/episodes/file_index"])
            for row in table.to_pylist():
                place = layout.EPISODES_PATH.format(
                    **{f"{n}_index": _number(row[f"meta/episodes/{n}_index"]) for n in ("chunk", "file")}
                )
                if opened.root / place != path:
                    problems.append(f"{path.relative_to(opened.root)}: a row says it lies in {place}")
                    break
    return problems[:MOST_PROBLEMS]


def _number(value: object) -> int:
    """−1, which no file has, for a cell that is no whole number."""
    return value if isinstance(value, int) else -1


def timestamps(opened: Opened) -> list[str]:
    assert opened.info is not None and opened.frames is not None
    found = joined(opened.frames, "timestamp").astype(np.float64)
    wanted = joined(opened.frames, "frame_index") / opened.info.fps
    # float32 cannot say 1e-4 s after half an hour; its own spacing is allowed then.
    slack = np.maximum(opened.tolerance_s, np.spacing(np.abs(wanted).astype(np.float32)))
    wrong = np.flatnonzero(~(np.abs(found - wanted) <= slack))
    if not wrong.size:
        return []
    row = wrong[0]
    problem = f"row {row} has timestamp {found[row]:.6f}, frame / fps is {wanted[row]:.6f}; {wrong.size} rows differ"
    off = float(np.abs(found - wanted)[wrong].max())
    if off < 1 / opened.info.fps:  # a clock's jitter; nan is not
        problem += (
            f", by {off:.4g} s at most; times that jitter are taken with --tolerance {np.ceil(off * 1e4) / 1e4:g}"
        )
    return [problem]


def video_ends(opened: Opened) -> list[str]:
    """Every frame has a picture's packet at its time, the first and the last of every episode decode, for every camera;
    spans in a file do not overlap."""
    info, episodes = opened.info, opened.episodes
    assert info is not None and episodes is not None
    problems = []
    for key in info.video_keys:
        reader: VideoReader | None = None
        times, end = np.empty(0), 0.0
        for episode in episodes:
            span = episode.videos[key]
            last = span.from_s + (episode.length - 1) / info.fps
            try:
                if reader is None or reader.path != opened.root / span.path:
                    if reader is not None:
                        reader.close()
                    reader, end = None, 0.0
                    reader = VideoReader(opened.root / span.path, opened.tolerance_s)
                    times = frame_times(opened.root / span.path)
                if span.from_s < end - TOLERANCE_S:
                    problems.append(
                        f"episode {episode.index}: {key} starts at {span.from_s} s, the one before ends at {end} s"
                    )
                if last >= span.to_s:
                    problems.append(
                        f"episode {episode.index}: {key} ends at {span.to_s} s, its last frame is due at {last} s"
                    )
                end = span.to_s
                missing = _missing_frames(times, span.from_s, episode.length, info.fps, opened.tolerance_s)
                if missing:
                    problems.append(f"episode {episode.index}: {span.path} of {key} {missing}")
                    continue
                reader.frame_at(span.from_s)
                reader.frame_at(last)
            except DatasetError as error:
                problems.append(f"episode {episode.index}: {error}")
        if reader is not None:
            reader.close()
    return problems[:MOST_PROBLEMS] or _stored_image_ends(opened, episodes)


def _missing_frames(times: NDArray, from_s: float, length: int, fps: float, tolerance_s: float) -> str:
    """Which frames of an episode have no packet at their time, in words; "" when all have one."""
    due = from_s + np.arange(length) / fps
    ends = np.concatenate([[-np.inf], times, [np.inf]])
    after = np.searchsorted(ends, due)
    near = np.minimum(due - ends[after - 1], ends[after] - due)
    missing = np.flatnonzero(near > tolerance_s + 1e-9)
    if not missing.size:
        return ""
    which = f"frame {missing[0]}" + (f" and {missing.size - 1} more" if missing.size > 1 else "")
    remedy = "record it again or leave it out with `vla-data delete`"
    if missing[0] == length - missing.size:
        return f"ends {missing.size} pictures before the frames do ({which}); {remedy}"
    return f"has no picture for {which}: the nearest is {near[missing].max():.4f} s away; {remedy}"


def _stored_image_ends(opened: Opened, episodes: list[Episode]) -> list[str]:
    assert opened.info is not None
    if not opened.info.keys_of("image"):
        return []
    if opened.frames is None:
        return ["the data files with the pictures cannot be read"]
    ends = np.cumsum([file.rows for file in opened.frames])
    files = [FileRows(file.path, int(end) - file.rows, int(end)) for file, end in zip(opened.frames, ends)]
    problems = []
    for episode in episodes:
        for key in opened.info.keys_of("image"):
            for index in (episode.from_index, episode.to_index - 1):
                try:
                    if index < ends[-1]:
                        stored_image(files, key, index)
                except DatasetError as error:
                    problems.append(f"episode {episode.index}: {error}")
    return problems[:MOST_PROBLEMS]


def task_indices(opened: Opened) -> list[str]:
    episodes, tasks, frames = opened.episodes, opened.tasks, opened.frames
    assert episodes is not None and tasks is not None and frames is not None
    used, number = joined(frames, "task_index"), joined(frames, "episode_index")
    problems = [
        f"task_index {index} of row {np.flatnonzero(used == index)[0]} is not in meta"
        for index in np.unique(used)
        if int(index) not in tasks
    ]
    if opened.info is not None and opened.info.version == layout.V30 and list(tasks) != list(range(len(tasks))):
        problems.append(
            f"tasks have the numbers {list(tasks)[:5]}, and LeRobot takes tasks by their place; close the gaps with "
            "`vla-data renumber`"
        )
    for episode in episodes:
        texts = {tasks.get(int(index)) for index in np.unique(used[number == episode.index])}
        if texts != set(episode.tasks):
            problems.append(
                f"episode {episode.index}: meta says tasks {list(episode.tasks)}, its frames say "
                f"{sorted(map(str, texts))}"
            )
    return problems[:MOST_PROBLEMS]
