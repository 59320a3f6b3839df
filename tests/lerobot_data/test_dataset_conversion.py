# SPDX-License-Identifier: Apache-2.0
"""v2.1 → v3.0 against what LeRobot 0.4.4's own converter made of the same dataset, and `compare`."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_edge.errors import CheckFailed, DatasetError
from vla_edge.lerobot_data.compare_data import compare_datasets
from vla_edge.lerobot_data.editing.convert import convert_dataset
from vla_edge.lerobot_data.editing.rewrite import FileSizes
from vla_edge.lerobot_data.layout import INDEX_FEATURES
from vla_edge.lerobot_data.reader import open_dataset
from vla_edge.lerobot_data.recompute import largest_difference, recompute_stats
from vla_edge.lerobot_data.stats import NEEDED, QUANTILES, number_stats
from vla_edge.lerobot_data.tables import stats_to_json
from vla_edge.lerobot_data.verification.verify import verify_dataset
from vla_edge.lerobot_data.video import H264, VideoEncoder
from vla_edge.lerobot_data.writer import DatasetWriter

DATA = Path(__file__).parents[1] / "data"
V21, V30 = DATA / "koch_v21", DATA / "koch_v30_official"
FRONT = "observation.images.front"


def digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


def write_v21(root: Path, lengths: list[int], picture: bool = False) -> None:
    """A v2.1 dataset without video: random actions, and a small PNG per frame when asked."""
    rng, start = np.random.default_rng(0), 0
    features: dict[str, dict] = {"action": {"dtype": "float32", "shape": [6], "names": None}}
    if picture:
        features["camera"] = {"dtype": "image", "shape": [8, 8, 3], "names": ["height", "width", "channels"]}
    features |= {key: {"dtype": feature.dtype, "shape": [1], "names": None} for key, feature in INDEX_FEATURES.items()}
    meta: dict[str, list[dict]] = {"episodes": [], "episodes_stats": [], "tasks": [{"task_index": 0, "task": "Pick"}]}
    (root / "data/chunk-000").mkdir(parents=True)
    (root / "meta").mkdir()
    for number, length in enumerate(lengths):
        frames = np.arange(length)
        columns: dict[str, np.ndarray] = {
            "action": rng.normal(size=(length, 6)).astype(np.float32),
            "timestamp": (frames / 30).astype(np.float32),
            "frame_index": frames,
            "episode_index": np.full(length, number),
            "index": frames + start,
            "task_index": np.zeros(length, np.int64),
        }
        table = pa.table({key: list(value) if key == "action" else value for key, value in columns.items()})
        table = table.set_column(0, "action", table["action"].cast(pa.list_(pa.float32(), 6)))
        stats = {key: number_stats(value) for key, value in columns.items()}
        if picture:
            images = rng.integers(0, 256, (length, 8, 8, 3), dtype=np.uint8)
            cells = [{"bytes": cv2.imencode(".png", image)[1].tobytes(), "path": "x.png"} for image in images]
            table = table.append_column("camera", pa.array(cells))
            stats["camera"] = {name: np.full((3, 1, 1), 0.5) for name in ("min", "max", "mean", "std")}
            stats["camera"]["count"] = np.array([length])
        pq.write_table(table, root / f"data/chunk-000/episode_{number:06d}.parquet")
        meta["episodes"].append({"episode_index": number, "tasks": ["Pick"], "length": length})
        meta["episodes_stats"].append({"episode_index": number, "stats": stats_to_json(stats)})
        start += length
    for name, rows in meta.items():
        (root / f"meta/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    info = {
        "codebase_version": "v2.1",
        "robot_type": "koch",
        "total_episodes": len(lengths),
        "total_frames": start,
        "total_tasks": 1,
        "total_videos": 0,
        "total_chunks": 1,
        "chunks_size": 1000,
        "fps": 30,
        "splits": {"train": f"0:{len(lengths)}"},
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": None,
        "features": features,
    }
    (root / "meta/info.json").write_text(json.dumps(info))


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("converted") / "koch"
    convert_dataset(V21, target)
    return target


@pytest.mark.parametrize(
    "name", ["data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet", "meta/tasks.parquet"]
)
def test_tables_equal_the_official_ones_in_every_cell_and_type(converted: Path, name: str) -> None:
    ours, official = pq.read_table(converted / name), pq.read_table(V30 / name)
    added = set(ours.column_names) - set(official.column_names)  # that converter adds no quantiles
    assert {column.rsplit("/", 1)[-1] for column in added} <= set(QUANTILES)
    ours = ours.drop_columns(sorted(added))
    assert ours.schema.equals(official.schema) and ours.equals(official)


def test_info_and_statistics_equal_the_official_ones(converted: Path) -> None:
    assert json.loads((converted / "meta/info.json").read_text()) == json.loads((V30 / "meta/info.json").read_text())
    written, known = (json.loads((root / "meta/stats.json").read_text()) for root in (converted, V30))
    assert {key: {name: entry[name] for name in known[key]} for key, entry in written.items()} == known
    assert list(written["action"]) == [*NEEDED, *QUANTILES], "a number has all ten"
    ours, official = (list(json.loads((root / "meta/info.json").read_text())) for root in (converted, V30))
    assert ours == official, "the same order of fields"


def test_every_decoded_frame_equals_the_official_one(converted: Path) -> None:
    with open_dataset(converted) as ours, open_dataset(V30) as official:
        for a, b in zip(ours.frames(), official.frames()):
            assert all(np.array_equal(a.images[key], b.images[key]) for key in b.images) and len(a.images) == 2


def test_files_are_those_of_the_official_converter(converted: Path) -> None:
    assert set(digests(converted)) == set(digests(V30))


def test_the_source_is_not_touched(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(V21, source)
    before = digests(source), {path: path.stat().st_mtime_ns for path in source.rglob("*")}
    convert_dataset(source, tmp_path / "target")
    assert before == (digests(source), {path: path.stat().st_mtime_ns for path in source.rglob("*")})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "target"]


def test_rolled_over_conversion_holds_the_same_and_names_the_right_files(tmp_path: Path) -> None:
    convert_dataset(V21, tmp_path / "target", FileSizes(0.003, 0.02))
    assert len(list((tmp_path / "target/data").rglob("*.parquet"))) == 4
    assert len(list((tmp_path / "target/videos" / FRONT).rglob("*.mp4"))) == 2
    assert compare_datasets(tmp_path / "target", V30, samples=40) == []


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=10), kib=st.integers(1, 10))
@settings(max_examples=15)
def test_each_converted_episode_lies_in_the_file_its_row_names(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], kib: int
) -> None:
    folder = tmp_path_factory.mktemp("roll")
    write_v21(folder / "old", lengths)
    convert_dataset(folder / "old", folder / "new", FileSizes(kib / 1024, 1))
    with open_dataset(folder / "new") as dataset:
        for episode in dataset.episodes:
            held = pq.read_table(folder / "new" / episode.data_path, columns=["episode_index"])[
                "episode_index"
            ].to_pylist()
            assert held.count(episode.index) == episode.length == lengths[episode.index]


def test_the_official_converters_fault_is_found_by_verify(tmp_path: Path) -> None:
    convert_dataset(V21, tmp_path / "set", FileSizes(0.003, 200))
    path = tmp_path / "set/meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    # LeRobot 0.4.4 records the episode that opens file n with file n − 1.
    numbers = [max(0, number - 1) for number in table["data/file_index"].to_pylist()]
    position = table.schema.get_field_index("data/file_index")
    pq.write_table(table.set_column(position, "data/file_index", pa.array(numbers)), path)
    failed = {check.name: check.problems for check in verify_dataset(tmp_path / "set").checks if check.problems}
    assert list(failed) == ["episode files"]
    assert failed["episode files"] is not None and "file-001.parquet" in failed["episode files"][0]


def test_pictures_inside_the_tables_come_through_byte_for_byte(tmp_path: Path) -> None:
    write_v21(tmp_path / "old", [4, 6], picture=True)
    convert_dataset(tmp_path / "old", tmp_path / "new")
    old = [
        cell
        for i in range(2)
        for cell in pq.read_table(tmp_path / f"old/data/chunk-000/episode_{i:06d}.parquet")["camera"].to_pylist()
    ]
    table = pq.read_table(tmp_path / "new/data/chunk-000/file-000.parquet")
    assert table["camera"].to_pylist() == old
    described = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert described["camera"] == {"_type": "Image"} and described["action"]["_type"] == "List"


def test_videos_of_different_coding_are_not_joined(tmp_path: Path) -> None:
    shutil.copytree(V21, tmp_path / "source")
    path = tmp_path / "source/videos/chunk-000" / FRONT / "episode_000002.mp4"
    with open_dataset(V21) as dataset:
        pictures = [dataset.image(FRONT, index) for index in range(55, 73)]
    path.unlink()
    encoder = VideoEncoder(path, 30, H264)
    for image in pictures:
        encoder.add(image)
    encoder.close()
    convert_dataset(tmp_path / "source", tmp_path / "target")
    assert len(list((tmp_path / "target/videos" / FRONT).rglob("*.mp4"))) == 3
    assert compare_datasets(tmp_path / "source", tmp_path / "target", samples=31) == []


def test_conversion_refuses_what_it_must_not_do(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(DatasetError, match="there: exists already"):
        convert_dataset(V21, tmp_path / "there")
    with pytest.raises(DatasetError, match="is v3.0"):
        convert_dataset(V30, tmp_path / "new")
    with pytest.raises(DatasetError, match="does not exist"):
        convert_dataset(tmp_path / "nowhere", tmp_path / "new")
    shutil.copytree(V21, tmp_path / "source")
    with pytest.raises(DatasetError, match="lies inside the source"):
        convert_dataset(tmp_path / "source", tmp_path / "source/new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "there"]


def truncate_video(root: Path) -> None:
    path = root / "videos/chunk-000" / FRONT / "episode_000001.mp4"
    path.write_bytes(path.read_bytes()[:1000])


def drop_column(root: Path) -> None:
    path = root / "data/chunk-000/episode_000001.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["action"]), path)


def drop_row(root: Path) -> None:
    path = root / "data/chunk-000/episode_000001.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)


def drop_stats(root: Path) -> None:
    path = root / "meta/episodes_stats.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))


def forget_episodes(root: Path) -> None:
    (root / "meta/episodes.jsonl").write_text("")


def drop_pattern_field(root: Path) -> None:
    path = root / "meta/info.json"
    path.write_text(path.read_text().replace("{episode_chunk:03d}/episode", "{chunk:03d}/episode"))


def shift_timestamps(root: Path) -> None:
    path = root / "data/chunk-000/episode_000002.parquet"
    table = pq.read_table(path)
    late = pa.array(table["timestamp"].to_numpy() + np.float32(0.01))
    pq.write_table(table.set_column(table.schema.get_field_index("timestamp"), "timestamp", late), path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate_video, "episode_000001.mp4 cannot be opened"),
        (drop_column, "column action is missing"),
        (drop_row, "data files hold 99 frames, meta says 100"),
        (forget_episodes, "lists no episode"),
        (drop_pattern_field, "data_path"),
        (shift_timestamps, "does not verify: "),
    ],
)
def test_a_damaged_source_ends_in_one_line_and_leaves_nothing(tmp_path: Path, damage, message: str) -> None:
    source = tmp_path / "source"
    shutil.copytree(V21, source)
    damage(source)
    with pytest.raises((DatasetError, CheckFailed), match=message):
        convert_dataset(source, tmp_path / "target")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def lose_picture_statistics(root: Path) -> None:
    path = root / "meta/episodes_stats.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row["stats"] = {key: entry for key, entry in row["stats"].items() if "images" not in key}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def lose_statistics(root: Path) -> None:
    (root / "meta/episodes_stats.jsonl").unlink()


def be_v20(root: Path) -> None:
    lose_statistics(root)
    path = root / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"codebase_version": "v2.0"}))
    whole = {"action": {"mean": [0] * 6, "std": [1] * 6, "min": [-9] * 6, "max": [9] * 6}}
    (root / "meta/stats.json").write_text(json.dumps(whole))


@pytest.mark.parametrize("lose", [drop_stats, lose_picture_statistics, lose_statistics, be_v20])
def test_statistics_that_the_source_lacks_are_computed_on_the_way(tmp_path: Path, lose) -> None:
    source = tmp_path / "source"
    shutil.copytree(V21, source)
    lose(source)
    before = digests(source)
    convert_dataset(source, tmp_path / "target")
    assert digests(source) == before
    assert verify_dataset(tmp_path / "target").passed
    computed, stored = recompute_stats(tmp_path / "target")
    for key in computed:
        if stored[key]["mean"].shape != (3, 1, 1) or lose is not drop_stats:
            assert largest_difference(key, computed, stored) < 1e-4 and set(stored[key]) == {*NEEDED, *QUANTILES}


def change_action(root: Path) -> str:
    path = root / "data/chunk-000/episode_000002.parquet"
    table = pq.read_table(path)
    rows = table["action"].to_pylist()
    rows[5][2] = float(np.nextafter(np.float32(rows[5][2]), np.float32(1000)))
    column = pa.array(rows, pa.list_(pa.float32()))
    pq.write_table(table.set_column(0, "action", column), path)
    return "episode 2: action differs at frame 5"


def swap_videos(root: Path) -> str:
    folder = root / "videos/chunk-000"
    shutil.copy(folder / FRONT / "episode_000001.mp4", folder / "observation.images.wrist/episode_000001.mp4")
    return "episode 1: observation.images.wrist differs at frame 0"


def change_task(root: Path) -> str:
    path = root / "meta/tasks.jsonl"
    path.write_text(path.read_text().replace("green", "red"))
    return "episode 1: task differs at frame 0"


def change_statistics(root: Path) -> str:
    path = root / "meta/episodes_stats.jsonl"
    path.write_text(path.read_text().replace("27.35289764404297", "27.35289764404298"))
    return "episode 0: mean of action"


@pytest.mark.parametrize("change", [change_action, swap_videos, change_task, change_statistics])
def test_compare_names_a_single_difference(tmp_path: Path, change) -> None:
    shutil.copytree(V21, tmp_path / "set")
    expected = change(tmp_path / "set")
    differences = compare_datasets(tmp_path / "set", V30)
    assert differences and differences[0].startswith(expected), differences


def test_compare_names_datasets_of_other_shape(tmp_path: Path) -> None:
    features = {"action": open_dataset(V21).features["action"]}
    with DatasetWriter(tmp_path / "set", 10, features, "koch") as writer:
        writer.add_frame({"action": np.zeros(6, np.float32)}, "t")
        writer.save_episode()
    differences = " ".join(compare_datasets(tmp_path / "set", V21))
    assert "fps 10 and 30" in differences and "observation.state" in differences and "1 and 4 episodes" in differences
