# SPDX-License-Identifier: Apache-2.0
"""Reading LeRobot v2.1 and v3.0, and writing v3.0."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_edge.errors import DatasetError
from vla_edge.lerobot_data.compare_data import compare_datasets
from vla_edge.lerobot_data.layout import Feature
from vla_edge.lerobot_data.meta import read_episode_stats
from vla_edge.lerobot_data.reader import open_dataset
from vla_edge.lerobot_data.stats import QUANTILES, ImageMoments, aggregate, number_stats, sampled_frames
from vla_edge.lerobot_data.verification.verify import verify_dataset
from vla_edge.lerobot_data.video import AV1, H264, Encoding, VideoEncoder
from vla_edge.lerobot_data.writer import DatasetWriter, WriterSettings

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "dataset_stats.npz"
DATA = Path(__file__).parents[1] / "data"
V21, V30 = DATA / "koch_v21", DATA / "koch_v30_official"
FRONT = "observation.images.front"
HWC = ["height", "width", "channels"]
NUMBERS = {"observation.state": Feature("float32", (6,)), "action": Feature("float32", (6,))}


def numbers(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {key: rng.normal(size=6).astype(np.float32) for key in NUMBERS}


def picture(value: int, height: int = 64, width: int = 96) -> np.ndarray:
    """A grey picture whose brightness tells its number after lossy coding: steps of 8 levels."""
    return np.full((height, width, 3), 8 * value + 8, np.uint8)


def test_both_versions_give_the_same_frames_bit_for_bit() -> None:
    with open_dataset(V21) as old, open_dataset(V30) as new:
        assert (len(old), len(new), old.fps, old.tasks) == (100, 100, 30, new.tasks)
        for a, b in zip(old.frames(), new.frames()):
            assert (a.index, a.episode_index, a.frame_index, a.timestamp, a.task) == (
                b.index,
                b.episode_index,
                b.frame_index,
                b.timestamp,
                b.task,
            )
            assert set(a.values) == {"observation.state", "action"} and len(a.images) == 2
            for key in a.values:
                assert a.values[key].dtype == np.float32 and np.array_equal(a.values[key], b.values[key])
            for key in a.images:
                assert a.images[key].shape == (120, 160, 3) and a.images[key].dtype == np.uint8
                assert np.array_equal(a.images[key], b.images[key])


def test_random_access_gives_the_same_pictures_as_reading_in_order() -> None:
    with open_dataset(V30) as dataset:
        in_order = [sample.images[FRONT] for sample in dataset.frames(cameras=[FRONT])]
    with open_dataset(V30) as dataset:
        for index in np.random.default_rng(0).permutation(100):
            assert np.array_equal(dataset.image(FRONT, int(index)), in_order[index])


def test_a_picture_is_the_callers_own() -> None:
    with open_dataset(V30) as dataset:
        first = dataset.image(FRONT, 3)
        kept = first.copy()
        first[:] = 0
        assert np.array_equal(dataset.image(FRONT, 3), kept)


@given(index=st.integers(0, 99), horizon=st.integers(1, 60))
@settings(max_examples=60)
def test_a_chunk_repeats_the_last_action_of_its_episode_and_says_so(index: int, horizon: int) -> None:
    with open_dataset(V30) as dataset:
        actions, is_pad = dataset.chunk(index, horizon)
        end = next(episode.to_index for episode in dataset.episodes if index < episode.to_index)
        for step in range(horizon):
            assert is_pad[step] == (index + step >= end)
            assert np.array_equal(actions[step], dataset.column("action")[min(index + step, end - 1)])


def test_delta_timestamps_clamp_to_the_episode_for_numbers_and_pictures() -> None:
    with open_dataset(V21) as dataset:
        window = dataset.window(25, {"observation.state": [-0.1, -1 / 30, 0.0, 1 / 30], FRONT: [-2 / 30, 0.0]})
        assert window["observation.state_is_pad"].tolist() == [True, False, False, False]
        assert np.array_equal(window["observation.state"], dataset.column("observation.state")[[24, 24, 25, 26]])
        assert window[f"{FRONT}_is_pad"].tolist() == [True, False]
        assert np.array_equal(window[FRONT], np.stack([dataset.image(FRONT, 24), dataset.image(FRONT, 25)]))
        with pytest.raises(DatasetError, match="multiples of 1/30"):
            dataset.window(25, {"action": [0.01]})


def test_statistics_of_v21_put_together_equal_the_official_converters() -> None:
    with open_dataset(V21) as old, open_dataset(V30) as new:
        assert set(old.stats) == set(new.stats)
        for key, entry in new.stats.items():
            for name, value in entry.items():
                assert np.array_equal(old.stats[key][name], value) and old.stats[key][name].shape == value.shape


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    features = NUMBERS | {
        "gain": Feature("float64", (1,)),
        "table": Feature("int64", (2, 3)),
        "done": Feature("bool", (1,)),
        "note": Feature("string", (1,)),
        "observation.images.a": Feature("video", (64, 96, 3), HWC),
        "observation.images.b": Feature("image", (64, 96, 3), HWC),
    }
    rng = np.random.default_rng(1)
    kept: list[dict[str, Any]] = []
    with DatasetWriter(tmp_path / "set", 30, features, "koch") as writer:
        for length in (7, 1, 12):
            for i in range(length):
                noise = rng.integers(0, 256, (64, 96, 3), dtype=np.uint8)
                kept.append(
                    {
                        **numbers(rng),
                        "gain": 0.1 * i,
                        "table": np.arange(6).reshape(2, 3) + i,
                        "done": i == length - 1,
                        "note": f"n{i}",
                        "observation.images.a": picture(i),
                        "observation.images.b": noise,
                    }
                )
                writer.add_frame(kept[-1], task=f"task {length % 2}")
            writer.save_episode()
    assert verify_dataset(tmp_path / "set").passed
    with open_dataset(tmp_path / "set") as dataset:
        assert [episode.length for episode in dataset.episodes] == [7, 1, 12] and dataset.info.robot_type == "koch"
        assert [dataset.episodes[i].tasks for i in range(3)] == [("task 1",), ("task 1",), ("task 0",)]
        assert dataset.features["observation.images.a"].video_info["video.codec"] in ("av1", "h264")  # type: ignore[index]
        for sample, frame in zip(dataset.frames(), kept):
            for key in ("observation.state", "action", "gain", "table", "done", "note"):
                assert np.array_equal(np.ravel(sample.values[key]), np.ravel(frame[key])), key
            assert np.array_equal(sample.images["observation.images.b"], frame["observation.images.b"])  # PNG is exact
            # Flat grey survives AV1 at quality 30 and 4:2:0 within 2 levels; neighbours differ by 8.
            assert np.abs(sample.images["observation.images.a"].astype(int) - frame["observation.images.a"]).max() <= 2


def test_tables_have_the_column_types_of_the_official_ones(tmp_path: Path) -> None:
    with (
        open_dataset(V30) as dataset,
        DatasetWriter(
            tmp_path / "set",
            30,
            {key: dataset.features[key] for key in ("action", "observation.state", FRONT, "observation.images.wrist")},
        ) as writer,
    ):
        for sample in dataset.frames(0):
            writer.add_frame(dict(sample.values) | dict(sample.images), sample.task)
        writer.save_episode()
    for name in ("data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet", "meta/tasks.parquet"):
        ours, official = pq.read_schema(tmp_path / "set" / name), pq.read_schema(V30 / name)
        columns = {field.name: field.type for field in ours if field.name.rsplit("/", 1)[-1] not in QUANTILES}
        assert columns == {field.name: field.type for field in official}, name  # LeRobot 0.4.4 wrote no quantiles then
    ours, official = (json.loads((root / "meta/info.json").read_text()) for root in (tmp_path / "set", V30))
    assert list(ours) == list(official)
    assert {key: {k: v for k, v in entry.items() if k != "info"} for key, entry in ours["features"].items()} == {
        key: {k: v for k, v in entry.items() if k != "info"} for key, entry in official["features"].items()
    }
    assert list(ours["features"][FRONT]["info"]) == list(official["features"][FRONT]["info"])


def test_tasks_table_restores_the_texts_as_its_pandas_index(tmp_path: Path) -> None:
    with DatasetWriter(tmp_path / "set", 10, NUMBERS) as writer:
        writer.add_frame(numbers(np.random.default_rng(0)), "Pick")
        writer.save_episode()
    metadata = [
        json.loads(pq.read_schema(root / "meta/tasks.parquet").metadata[b"pandas"]) for root in (tmp_path / "set", V30)
    ]
    assert metadata[0]["index_columns"] == metadata[1]["index_columns"] == ["__index_level_0__"]


def test_written_statistics_equal_numpy_over_all_frames(tmp_path: Path) -> None:
    features = NUMBERS | {FRONT: Feature("image", (32, 48, 3), HWC)}
    rng, states, images = np.random.default_rng(2), [], []
    with DatasetWriter(tmp_path / "set", 30, features) as writer:
        for length in (5, 130, 9):
            for _ in range(length):
                frame = numbers(rng) | {FRONT: rng.integers(0, 256, (32, 48, 3), dtype=np.uint8)}
                states.append(frame["observation.state"])
                images.append(frame[FRONT])
                writer.add_frame(frame, "t")
            writer.save_episode()
    with open_dataset(tmp_path / "set") as dataset:
        found, parts = dataset.stats, read_episode_stats(dataset.root, dataset.info)
    wide = np.stack(states).astype(np.float64)
    # Sums in another order: 1e-12 of numbers near 1.
    for name, value in (("mean", wide.mean(0)), ("std", wide.std(0)), ("min", wide.min(0)), ("max", wide.max(0))):
        assert np.allclose(found["observation.state"][name], value, rtol=0, atol=1e-12)
    assert found["observation.state"]["count"].tolist() == [144]
    # 130 frames are sampled by LeRobot's rule: 100 of them.
    chosen = [5 + frame for frame in sampled_frames(130)]
    assert len(chosen) == 100 and parts[1][FRONT]["count"].tolist() == [100]
    pixels = np.stack(images)[chosen].reshape(-1, 3) / 255.0
    for name, value in (
        ("mean", pixels.mean(0)),
        ("std", pixels.std(0)),
        ("min", pixels.min(0)),
        ("max", pixels.max(0)),
    ):
        assert parts[1][FRONT][name].shape == (3, 1, 1)
        assert np.allclose(parts[1][FRONT][name].ravel(), value, rtol=0, atol=1e-12)


def test_numbers_have_the_ten_statistics_as_lerobot_computes_them() -> None:
    """Golden numbers of LeRobot 0.6.1's `get_feature_stats`, float32; its quantiles are off by one of 5000 bins."""
    golden = np.load(GOLDEN)
    found = number_stats(golden["values"])
    spread = golden["max"] - golden["min"]
    assert list(found) == ["min", "max", "mean", "std", "count", *QUANTILES]
    for name in ("min", "max", "mean", "std"):
        assert np.abs(found[name] - golden[name]).max() <= 1e-6 * np.abs(golden["values"]).max()
    for name in QUANTILES:
        assert (np.abs(found[name] - golden[name]) <= 1.01 * spread / 5000 + 1e-6).all(), name


def test_pictures_have_the_ten_statistics_as_lerobot_computes_them() -> None:
    golden = np.load(GOLDEN)
    moments = ImageMoments()
    for picture in golden["pictures"]:
        moments.add(picture)
    found = moments.stats(range(len(golden["pictures"])))
    for name in ("min", "max", "mean", "std", *QUANTILES):
        assert found[name].shape == (3, 1, 1)
        assert np.abs(found[name].ravel() - golden[f"picture_{name}"].ravel()).max() <= 1 / 5000 + 1e-5, name


def test_a_joint_that_rests_has_a_standard_deviation_of_nothing() -> None:
    resting = np.full((1000, 1), 0.1, np.float32)
    found = number_stats(resting)
    assert found["std"].item() == 0 and found["mean"].item() == resting[0, 0] == found["q50"].item()


def test_quantiles_are_averaged_by_count_and_kept_only_where_all_have_them() -> None:
    one, other = ({"x": number_stats(np.arange(n, dtype=np.float64))} for n in (10, 30))
    joined = aggregate([one, other])["x"]
    assert joined["q50"].tolist() == [(10 * one["x"]["q50"][0] + 30 * other["x"]["q50"][0]) / 40]
    del other["x"]["q50"]
    assert "q50" not in aggregate([one, other])["x"] and "q90" in aggregate([one, other])["x"]


@pytest.mark.parametrize(("length", "count"), [(1, 1), (99, 99), (100, 100), (500, 105), (1000, 177), (20000, 1681)])
def test_image_statistics_sample_as_many_frames_as_lerobot(length: int, count: int) -> None:
    frames = sampled_frames(length)
    assert len(frames) == count and frames[0] == 0 and frames[-1] == length - 1


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12), kib=st.integers(1, 12), chunks=st.integers(1, 4))
@settings(max_examples=25)
def test_every_episode_lies_in_the_file_its_row_names(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], kib: int, chunks: int
) -> None:
    root = tmp_path_factory.mktemp("roll") / "set"
    rng = np.random.default_rng(0)
    with DatasetWriter(root, 30, NUMBERS, settings=WriterSettings(kib / 1024, 1, chunks)) as writer:
        for length in lengths:
            for _ in range(length):
                writer.add_frame(numbers(rng), "t")
            writer.save_episode()
    with open_dataset(root) as dataset:
        assert [episode.length for episode in dataset.episodes] == lengths
        for episode in dataset.episodes:
            held = pq.read_table(root / episode.data_path, columns=["index"])["index"].to_numpy()
            inside = (held >= episode.from_index) & (held < episode.to_index)
            assert inside.sum() == episode.length
    files = sorted(root.glob("data/*/*.parquet"))
    assert all(len(list(folder.iterdir())) <= chunks for folder in root.glob("data/*"))
    # A file passes its limit only when it holds a single episode.
    for path in files:
        table = pq.read_table(path)
        slack = 64 * pq.read_metadata(path).num_row_groups  # list offsets and padding of each group, counted anew
        assert table.nbytes <= kib * 1024 + slack or len(set(table["episode_index"].to_pylist())) == 1
    assert verify_dataset(root).passed


@pytest.mark.parametrize(("encoding", "limit_mb"), [(AV1, 0.003), (H264, 0.008)])
def test_videos_roll_over_and_every_frame_is_found_by_its_time(
    tmp_path: Path, encoding: Encoding, limit_mb: float
) -> None:
    features = NUMBERS | {FRONT: Feature("video", (64, 96, 3), HWC)}
    rng = np.random.default_rng(0)
    shown: list[int] = []
    settings = WriterSettings(video_file_mb=limit_mb, encoding=encoding)
    with DatasetWriter(tmp_path / "set", 30, features, settings=settings) as writer:
        for length in (17, 3, 30, 11, 24):
            for _ in range(length):
                shown.append(len(shown) % 30)
                writer.add_frame(numbers(rng) | {FRONT: picture(shown[-1])}, "t")
            writer.save_episode()
    assert 1 < len(list((tmp_path / "set/videos").rglob("*.mp4"))) < 5, "both joining and rolling over must happen"
    with open_dataset(tmp_path / "set") as dataset:
        for index in rng.permutation(len(shown)):
            # Steps of 8 levels between neighbours: 3 tells them apart.
            assert abs(float(dataset.image(FRONT, int(index)).mean()) - (8 * shown[index] + 8)) < 3
    assert verify_dataset(tmp_path / "set").passed


def test_an_encoder_takes_no_thread_into_the_real_time_class(tmp_path: Path) -> None:
    """As root, SVT-AV1 would take its own threads and ours to priority 99: above the control loop of an arm."""
    encoder = VideoEncoder(tmp_path / "episode.mp4", 30, AV1)
    encoder.add(np.zeros((64, 96, 3), np.uint8))
    threads = os.listdir("/proc/self/task")
    assert {os.sched_getscheduler(int(thread)) for thread in threads} <= {os.SCHED_OTHER, os.SCHED_BATCH}
    encoder.close()


def test_a_discarded_episode_leaves_no_trace(tmp_path: Path) -> None:
    features = NUMBERS | {FRONT: Feature("video", (64, 96, 3), HWC)}
    for name, discard in (("plain", False), ("discarded", True)):
        rng = np.random.default_rng(0)
        with DatasetWriter(tmp_path / name, 30, features) as writer:
            for episode in range(2):
                for i in range(5):
                    writer.add_frame(numbers(rng) | {FRONT: picture(i + episode)}, "t")
                writer.save_episode()
                if discard:
                    writer.add_frame(numbers(np.random.default_rng(9)) | {FRONT: picture(30)}, "never said")
                    writer.discard_episode()
    assert compare_datasets(tmp_path / "plain", tmp_path / "discarded", samples=5) == []


def test_an_error_while_recording_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="cable"):
        with DatasetWriter(tmp_path / "set", 30, NUMBERS | {FRONT: Feature("video", (64, 96, 3), HWC)}) as writer:
            writer.add_frame(numbers(np.random.default_rng(0)) | {FRONT: picture(1)}, "t")
            writer.save_episode()
            writer.add_frame(numbers(np.random.default_rng(0)) | {FRONT: picture(1)}, "t")
            raise RuntimeError("the cable fell off")
    assert list(tmp_path.iterdir()) == []


def test_a_killed_recording_leaves_nothing_at_the_target(tmp_path: Path) -> None:
    program = """
import os, signal, sys
import numpy as np
from vla_edge.lerobot_data.layout import Feature
from vla_edge.lerobot_data.writer import DatasetWriter
writer = DatasetWriter(sys.argv[1], 30, {"action": Feature("float32", (6,))})
for _ in range(3):
    writer.add_frame({"action": np.zeros(6, np.float32)}, "t")
writer.save_episode()
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "set")], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "set").exists()


def test_recording_memory_does_not_grow_with_the_episode(tmp_path: Path) -> None:
    program = """
import resource, sys
import numpy as np
from vla_edge.lerobot_data.layout import Feature
from vla_edge.lerobot_data.writer import DatasetWriter
writer = DatasetWriter(sys.argv[1], 30, {"camera": Feature("video", (240, 320, 3), ["height", "width", "channels"])})
image = np.zeros((240, 320, 3), np.uint8)
for i in range(700):
    if i == 100:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    image[:, i % 320] = i % 256
    writer.add_frame({"camera": image}, "t")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
writer.abort()
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "set")], capture_output=True, text=True, check=True
    )
    # The 600 pictures after warm-up are 132 MiB raw; encoder queues may still settle by a few.
    assert float(done.stdout) < 40


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action": np.zeros(5, np.float32)}, r"action has shape \[5\], \[6\] is expected"),
        ({"action": np.full(6, np.nan, np.float32)}, "action is not finite"),
        ({"action": np.array(["a"] * 6)}, "action is <U1, float32"),
        ({FRONT: np.zeros((64, 96, 3), np.float32)}, "float32, uint8 is expected"),
        ({FRONT: np.zeros((64, 90, 3), np.uint8)}, r"has shape \[64, 90, 3\]"),
        ({"extra": 1}, r"other features than the dataset: \['extra'\]"),
    ],
)
def test_a_wrong_frame_is_refused_and_named(tmp_path: Path, change: dict, message: str) -> None:
    writer = DatasetWriter(tmp_path / "set", 30, NUMBERS | {FRONT: Feature("video", (64, 96, 3), HWC)})
    good = numbers(np.random.default_rng(0)) | {FRONT: picture(1)}
    with pytest.raises(DatasetError, match=message):
        writer.add_frame(good | change, "t")
    with pytest.raises(DatasetError, match="empty task"):
        writer.add_frame(good, " ")
    with pytest.raises(DatasetError, match="holds no frame"):
        writer.save_episode()
    writer.abort()
    assert list(tmp_path.iterdir()) == []


def test_a_close_refused_for_unsaved_frames_loses_nothing(tmp_path: Path) -> None:
    writer = DatasetWriter(tmp_path / "set", 30, NUMBERS)
    for _ in range(2):
        writer.add_frame(numbers(np.random.default_rng(0)), "t")
        writer.save_episode()
    writer.add_frame(numbers(np.random.default_rng(0)), "t")
    with pytest.raises(DatasetError, match="2 episodes saved, 1 frames in an unsaved one"):
        writer.close()
    writer.discard_episode()
    writer.close()
    with open_dataset(tmp_path / "set") as dataset:
        assert len(dataset) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_writer_refuses_existing_targets_empty_sets_and_features_it_cannot_store(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(DatasetError, match="exists"):
        DatasetWriter(tmp_path / "there", 30, NUMBERS)
    with pytest.raises(DatasetError, match="0 episodes saved"), DatasetWriter(tmp_path / "empty", 30, NUMBERS):
        pass
    with pytest.raises(DatasetError, match="1 frames in an unsaved one"):
        with DatasetWriter(tmp_path / "open", 30, NUMBERS) as writer:
            writer.add_frame(numbers(np.random.default_rng(0)), "t")
    for features, message in (
        ({"camera": Feature("video", (63, 96, 3), HWC)}, "even sizes"),
        ({"index": Feature("int64", (1,))}, "index"),
        ({"a/b": Feature("float32", (1,))}, "dots"),
        ({"x": Feature("complex64", (1,))}, "complex64"),
    ):
        with pytest.raises(DatasetError, match=message):
            DatasetWriter(tmp_path / "odd", 30, features)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there"]
