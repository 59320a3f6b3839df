# SPDX-License-Identifier: Apache-2.0
"""merge, split, delete, renumber and `tasks --assign`: what they make holds the same frames, and verifies."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vla_edge.errors import ConfigError, DatasetError
from vla_edge.lerobot_data.command import main
from vla_edge.lerobot_data.compare_data import compare_datasets
from vla_edge.lerobot_data.editing.convert import convert_dataset
from vla_edge.lerobot_data.editing.episode_edits import delete, merge, parse_shares, renumber, split
from vla_edge.lerobot_data.layout import Feature
from vla_edge.lerobot_data.reader import Dataset, open_dataset
from vla_edge.lerobot_data.recompute import largest_difference, recompute_stats
from vla_edge.lerobot_data.task_texts import assign_task
from vla_edge.lerobot_data.verification.verify import verify_dataset
from vla_edge.lerobot_data.video import AV1, H264, Encoding
from vla_edge.lerobot_data.writer import DatasetWriter, WriterSettings

DATA = Path(__file__).resolve().parents[1] / "data"
V21, V30 = DATA / "koch_v21", DATA / "koch_v30_official"
COUNTED = {"index", "episode_index", "task_index"}


def frames_of(dataset: Dataset, episodes: list[int]) -> list[dict[str, Any]]:
    """What a policy sees of these episodes, frame by frame."""
    return [
        {"task": sample.task, "time": sample.timestamp, **sample.values, **sample.images}
        for number in episodes
        for sample in dataset.frames(number)
    ]


def assert_same_frames(made: Path, *sources: tuple[Path, list[int]]) -> None:
    with open_dataset(made) as ours:
        found = frames_of(ours, list(range(len(ours.episodes))))
    wanted = []
    for root, episodes in sources:
        with open_dataset(root) as dataset:
            wanted += frames_of(dataset, episodes)
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted):
        assert a.keys() == b.keys()
        for key in a:
            assert np.array_equal(a[key], b[key]), key
    assert verify_dataset(made).passed


def assert_statistics_are_right(made: Path) -> None:
    computed, stored = recompute_stats(made)
    for key in computed.keys() - {key for key in computed if "images" in key}:  # those stay as they were stored
        assert largest_difference(key, computed, stored) < 1e-3, key
    assert all(largest_difference(key, computed, stored) < 1e-12 for key in COUNTED)


def record(root: Path, lengths: list[int], encoding: Encoding, seed: int, kind: str = "video") -> Path:
    rng = np.random.default_rng(seed)
    camera = Feature(kind, (64, 96, 3), ["height", "width", "channels"])
    features = {"observation.images.top": camera, "action": Feature("float32", (2,), ["a", "b"])}
    with DatasetWriter(root, 30, features, settings=WriterSettings(encoding=encoding)) as writer:
        for number, length in enumerate(lengths):
            for _ in range(length):
                picture = np.repeat(np.repeat(rng.integers(0, 256, (8, 12, 3), np.uint8), 8, 0), 8, 1)
                values = {"observation.images.top": picture, "action": rng.normal(size=2).astype(np.float32)}
                writer.add_frame(values, f"task {number % 2}")
            writer.save_episode()
    return root


def test_merged_datasets_stand_one_after_the_other(tmp_path: Path) -> None:
    info = merge([V30, V21, V30], tmp_path / "merged")
    assert info.total_episodes == 12 and info.total_frames == 300 and info.total_tasks == 2
    everything = list(range(4))
    assert_same_frames(tmp_path / "merged", (V30, everything), (V21, everything), (V30, everything))
    assert_statistics_are_right(tmp_path / "merged")


@pytest.mark.parametrize("encoding", [AV1, H264, Encoding("libx264", (("g", "250"), ("bf", "3")))])
def test_kept_episodes_have_every_picture_bit_for_bit_wherever_the_key_frames_lie(
    tmp_path: Path, encoding: Encoding
) -> None:
    source = record(tmp_path / "source", [7, 12, 5, 9], encoding, seed=1)
    delete(source, [0, 2], tmp_path / "kept")
    assert_same_frames(tmp_path / "kept", (source, [1, 3]))
    assert_statistics_are_right(tmp_path / "kept")
    delete(tmp_path / "kept", [0], tmp_path / "again")  # its first frame may lie between key frames
    assert_same_frames(tmp_path / "again", (source, [3]))
    with open_dataset(tmp_path / "again") as dataset:
        assert dataset.tasks == {0: "task 1"}, "texts that no frame has are dropped"


def test_an_episode_that_starts_between_key_frames_is_cut_at_the_key_frame_before(tmp_path: Path) -> None:
    """As LeRobot's own delete leaves videos: encoded through, whatever episodes begin where."""
    encoding = Encoding("libx264", (("g", "250"), ("bf", "2")))
    source = record(tmp_path / "source", [20], encoding, seed=2)
    path = source / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist() * 2
    for number, (first, last) in enumerate(((0, 7), (7, 20))):
        rows[number] = rows[number] | {
            "episode_index": number, "dataset_from_index": first, "dataset_to_index": last, "length": last - first,
            "videos/observation.images.top/from_timestamp": first / 30,
            "videos/observation.images.top/to_timestamp": last / 30,
        }  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path)
    data = source / "data/chunk-000/file-000.parquet"
    table = pq.read_table(data)
    for name, cells in (("episode_index", [0] * 7 + [1] * 13), ("frame_index", [*range(7), *range(13)])):
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(cells, pa.int64()))
    times = pa.array([n / 30 for n in (*range(7), *range(13))], pa.float32())
    pq.write_table(table.set_column(table.schema.get_field_index("timestamp"), "timestamp", times), data)
    info = json.loads((source / "meta/info.json").read_text())
    (source / "meta/info.json").write_text(json.dumps(info | {"total_episodes": 2, "splits": {"train": "0:2"}}))
    recompute_stats(source, write=True)
    delete(source, [0], tmp_path / "kept")
    assert_same_frames(tmp_path / "kept", (source, [1]))


def test_parts_hold_shares_in_order_or_the_numbers_named(tmp_path: Path) -> None:
    infos = split(V30, parse_shares(["train=0.75", "val=0.25"]), tmp_path / "shares")
    assert {name: info.total_episodes for name, info in infos.items()} == {"train": 3, "val": 1}
    assert_same_frames(tmp_path / "shares/train", (V30, [0, 1, 2]))
    assert_same_frames(tmp_path / "shares/val", (V30, [3]))
    split(V21, parse_shares(["a=3,0", "b=1"]), tmp_path / "numbers")
    assert_same_frames(tmp_path / "numbers/a", (V21, [0, 3]))
    assert_statistics_are_right(tmp_path / "numbers/a")


def test_pictures_and_annotations_inside_the_tables_come_along(tmp_path: Path) -> None:
    source = record(tmp_path / "source", [4, 3, 5], AV1, seed=3, kind="image")
    path = source / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    words = pa.array([[{"role": "user", "content": f"word {n}"}] for n in range(table.num_rows)])
    pq.write_table(table.append_column("language_persistent", words), path)
    info = json.loads((source / "meta/info.json").read_text())
    info["features"]["language_persistent"] = {"dtype": "language", "shape": [1], "names": None}
    (source / "meta/info.json").write_text(json.dumps(info | {"tools": [{"name": "grasp"}]}))
    delete(source, [1], tmp_path / "kept")
    assert_same_frames(tmp_path / "kept", (source, [0, 2]))
    kept = pq.read_table(tmp_path / "kept/data/chunk-000/file-000.parquet")
    old = pq.read_table(path)
    assert kept["language_persistent"].to_pylist() == [words.to_pylist()[n] for n in (0, 1, 2, 3, 7, 8, 9, 10, 11)]
    camera = "observation.images.top"
    assert kept[camera].to_pylist()[4:] == old[camera].to_pylist()[7:]
    assert json.loads((tmp_path / "kept/meta/info.json").read_text())["tools"] == [{"name": "grasp"}]


def drop_episode(root: Path, version: str) -> None:
    """As people do by hand: the second episode is taken out, the others keep their numbers."""
    if version == "v2.1":
        (root / "data/chunk-000/episode_000001.parquet").unlink()
        for video in root.glob("videos/*/*/episode_000001.mp4"):
            video.unlink()
        for name in ("episodes.jsonl", "episodes_stats.jsonl"):
            lines = (root / "meta" / name).read_text().splitlines(keepends=True)
            (root / "meta" / name).write_text("".join(line for line in lines if '"episode_index": 1,' not in line))
        return
    for path in (*root.glob("meta/episodes/*/*.parquet"), *root.glob("data/*/*.parquet")):
        table = pq.read_table(path)
        pq.write_table(table.filter(pa.compute.not_equal(table["episode_index"], 1)), path)


@pytest.mark.parametrize(("source", "version"), [(V21, "v2.1"), (V30, "v3.0")])
def test_gaps_in_the_numbers_are_told_and_closed(tmp_path: Path, source: Path, version: str) -> None:
    root = tmp_path / "set"
    shutil.copytree(source, root)
    drop_episode(root, version)
    with pytest.raises(DatasetError, match=rf"episode 1 is missing in meta .* `vla-data renumber {root} --out NEW`"):
        open_dataset(root)
    assert not verify_dataset(root).passed
    info = renumber(root, tmp_path / "closed")
    assert info.total_episodes == 3 and info.raw["splits"] == {"train": "0:3"}
    assert_same_frames(tmp_path / "closed", (source, [0, 2, 3]))
    assert_statistics_are_right(tmp_path / "closed")


def test_lost_frames_are_not_renumbered_away(tmp_path: Path) -> None:
    shutil.copytree(V30, tmp_path / "set")
    path = tmp_path / "set/data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    pq.write_table(pa.concat_tables([table.slice(0, 5), table.slice(6)]), path)
    with pytest.raises(DatasetError, match="episode 0 has 23 frames in its data file, meta says 24"):
        renumber(tmp_path / "set", tmp_path / "closed")
    assert not (tmp_path / "closed").exists()


def test_a_sound_dataset_is_renumbered_into_its_equal_and_task_numbers_close_up(tmp_path: Path) -> None:
    renumber(V30, tmp_path / "same")
    assert compare_datasets(V30, tmp_path / "same", samples=5, completed=True) == []
    mends: list[tuple[Path, Callable[[Path, Path], Any]]] = [(V21, convert_dataset), (V30, renumber)]
    for number, (source, mend) in enumerate(mends):
        root = tmp_path / f"gap{number}"
        shutil.copytree(source, root)
        for path in (*root.glob("data/*/*.parquet"), *root.glob("meta/tasks.parquet")):
            table = pq.read_table(path)
            cells = pa.array([number * 5 for number in table["task_index"].to_pylist()], pa.int64())
            pq.write_table(table.set_column(table.schema.get_field_index("task_index"), "task_index", cells), path)
        for path in root.glob("meta/tasks.jsonl"):
            path.write_text(path.read_text().replace('"task_index": 1', '"task_index": 5'))
        told = [check for check in verify_dataset(root).checks if check.name == "task indices"][0]
        assert (
            not told.problems
            if source == V21 or told.problems is None
            else "LeRobot takes tasks by their place" in told.problems[0]
        )
        mend(root, tmp_path / f"mended{number}")
        assert_same_frames(tmp_path / f"mended{number}", (source, [0, 1, 2, 3]))
        with open_dataset(tmp_path / f"mended{number}") as dataset:
            assert list(dataset.tasks) == [0, 1]


@pytest.mark.parametrize("source", [V21, V30])
def test_a_task_is_given_to_episodes(tmp_path: Path, source: Path) -> None:
    root = tmp_path / "set"
    shutil.copytree(source, root)
    before = {path: path.read_bytes() for path in (root / "videos").rglob("*.mp4")}
    assert assign_task(root, "wave", [1, 3]) == 2
    with open_dataset(root) as dataset, open_dataset(source) as old:
        for episode in dataset.episodes:
            texts = {dataset.task_of(index) for index in range(episode.from_index, episode.to_index)}
            wanted = ("wave",) if episode.index in (1, 3) else old.episodes[episode.index].tasks
            assert texts == set(wanted) and episode.tasks == wanted
        assert dataset.info.total_tasks == 3
    assert verify_dataset(root).passed
    assert_statistics_are_right(root)
    assert before == {path: path.read_bytes() for path in (root / "videos").rglob("*.mp4")}
    assert assign_task(root, "wave") == 2
    with open_dataset(root) as dataset:
        assert {episode.tasks for episode in dataset.episodes} == {("wave",)}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["merge", "V30", "--out", "OUT"], "merge got 1 dataset; name two or more"),
        (["merge", "V30", "OTHER", "--out", "OUT"], "cannot stand in one dataset: robot_type koch and None"),
        (["delete", "V30", "--episodes", "4", "--out", "OUT"], "has no episode 4; there are 0 to 3"),
        (["delete", "V30", "--episodes", "0-3", "--out", "OUT"], "leave one at least"),
        (["split", "V30", "--part", "a=0.9", "--part", "b=0.2", "--out", "OUT"], "the shares sum to 1.1"),
        (["split", "V30", "--part", "a=0.1", "--out", "OUT"], "part a gets none of the 4 episodes"),
        (["split", "V30", "--part", "a=0-2", "--part", "b=2", "--out", "OUT"], "episode 2 stands in two parts"),
        (["split", "V30", "--part", "a=0.5", "--part", "b=2", "--out", "OUT"], "give one kind for all parts"),
        (["tasks", "V30", "--episodes", "1"], "--episodes says where --assign TEXT goes"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], line: str
) -> None:
    places = {"V30": str(V30), "OUT": str(tmp_path / "out"), "OTHER": str(tmp_path / "other")}
    record(tmp_path / "other", [3], AV1, seed=4)
    assert main([places.get(word, word) for word in words]) == 2
    told = capsys.readouterr().err
    assert line in told and told.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_parts_written_as_nothing_are_refused() -> None:
    for text in ("train", "=0.5", "a/b=0.5"):
        with pytest.raises(ConfigError, match="write NAME=SHARE"):
            parse_shares([text])


def test_info_says_what_a_dataset_holds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(V30), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["episodes"] == 4 and told["frames"] == 100 and told["cameras"]["front"]["width"] == 160
    assert told["cameras"]["front"]["stored"] == "video av1" and sum(told["tasks"].values()) == 100
    assert main(["info", str(V21)]) == 0
    assert "v2.1, robot koch, 30 frames a second" in capsys.readouterr().out
