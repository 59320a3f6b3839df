# SPDX-License-Identifier: Apache-2.0
"""Times that jitter, pictures that are missing in a video, tables with a column more."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vla_edge.errors import CheckFailed, DatasetError
from vla_edge.lerobot_data.command import main
from vla_edge.lerobot_data.editing.convert import convert_dataset
from vla_edge.lerobot_data.editing.episode_edits import delete
from vla_edge.lerobot_data.layout import Feature, read_info
from vla_edge.lerobot_data.meta import read_episodes, read_tasks
from vla_edge.lerobot_data.reader import open_dataset
from vla_edge.lerobot_data.stats import NEEDED, number_stats
from vla_edge.lerobot_data.verification.verify import verify_dataset
from vla_edge.lerobot_data.video import frame_times
from vla_edge.lerobot_data.writer import DatasetWriter

DATA = Path(__file__).resolve().parents[1] / "data"
V21, V30 = DATA / "koch_v21", DATA / "koch_v30_official"
FRONT = "observation.images.front"
VIDEO = f"videos/chunk-000/{FRONT}/episode_000002.mp4"


def copy_of(source: Path, tmp_path: Path) -> Path:
    shutil.copytree(source, tmp_path / "set")
    return tmp_path / "set"


def encode(path: Path, pictures: Sequence[np.ndarray], times_ms: Sequence[int]) -> None:
    """A video whose frame k is shown at times_ms[k]."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(30), options={"g": "2", "crf": "10", "bf": "0"})
        stream.height, stream.width, stream.pix_fmt = *pictures[0].shape[:2], "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for picture, time in zip(pictures, times_ms):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def front_pictures() -> list[np.ndarray]:
    """Of episode 2."""
    with open_dataset(V21) as dataset:
        episode = dataset.episodes[2]
        return [dataset.image(FRONT, index) for index in range(episode.from_index, episode.to_index)]


def problems_of(root: Path, name: str, tolerance_s: float = 1e-4) -> tuple[str, ...]:
    report = verify_dataset(root, tolerance_s=tolerance_s)
    return next(check.problems or () for check in report.checks if check.name == name)


def on_time(count: int) -> list[int]:
    return [round(1000 * k / 30) for k in range(count)]


def test_a_frame_missing_in_the_middle_of_a_video_is_found_by_the_times_of_its_packets(tmp_path: Path) -> None:
    root, pictures = copy_of(V21, tmp_path), front_pictures()
    times = on_time(len(pictures))
    encode(root / VIDEO, pictures[:7] + pictures[8:], times[:7] + times[8:])
    (told,) = problems_of(root, "video ends", 1e-3)
    assert told.startswith("episode 2: ") and "has no picture for frame 7: the nearest is 0.03" in told
    with pytest.raises(CheckFailed, match="has no picture for frame 7"):
        convert_dataset(root, tmp_path / "converted", tolerance_s=1e-3)
    delete(root, [2], tmp_path / "kept")
    assert verify_dataset(tmp_path / "kept").passed, "the remedy that is named"


def test_a_video_that_is_a_picture_short_is_told_and_read_with_a_tolerance_of_a_frame(tmp_path: Path) -> None:
    root, pictures = copy_of(V21, tmp_path), front_pictures()
    encode(root / VIDEO, pictures[:-1], on_time(len(pictures) - 1))
    (told,) = problems_of(root, "video ends", 1e-3)
    assert f"ends 1 pictures before the frames do (frame {len(pictures) - 1})" in told
    assert problems_of(root, "video ends", 0.034) == ()
    with open_dataset(root, tolerance_s=0.034) as dataset:
        last = dataset.episodes[2].to_index - 1
        assert np.array_equal(dataset.image(FRONT, last), dataset.image(FRONT, last - 1))


def test_times_that_jitter_are_taken_with_a_tolerance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, pictures = copy_of(V21, tmp_path), front_pictures()
    rng = np.random.default_rng(5)
    jittered = [time + int(rng.integers(-9, 10)) if time else 0 for time in on_time(len(pictures))]
    encode(root / VIDEO, pictures, jittered)
    path = root / "data/chunk-000/episode_000002.parquet"
    table = pq.read_table(path)
    times = pa.array([time / 1000 for time in jittered], pa.float32())
    pq.write_table(table.set_column(table.schema.get_field_index("timestamp"), "timestamp", times), path)
    assert main(["verify", str(root)]) == 1
    told = capsys.readouterr().out
    assert "times that jitter are taken with --tolerance 0.0" in told and "has no picture for frame" in told
    assert main(["verify", str(root), "--tolerance", "0.0101"]) == 0
    assert main(["convert", str(root), str(tmp_path / "new"), "--tolerance", "0.0101"]) == 0
    with open_dataset(tmp_path / "new", tolerance_s=0.0101) as ours, open_dataset(root, tolerance_s=0.0101) as source:
        for index in range(source.episodes[2].from_index, source.episodes[2].to_index):
            found, wanted = ours.image(FRONT, index), source.image(FRONT, index)
            assert np.array_equal(found, wanted)
            near = [np.abs(wanted.astype(int) - picture).mean() for picture in pictures]
            assert int(np.argmin(near)) == index - source.episodes[2].from_index, "each frame has its own picture"
    with open_dataset(root) as strict, pytest.raises(DatasetError, match=r"has no frame at .* \(within 0.0001 s\)"):
        list(strict.frames(2))


def test_every_tool_that_reads_pictures_takes_the_tolerance(tmp_path: Path) -> None:
    root, pictures = copy_of(V21, tmp_path), front_pictures()
    late = [time + 9 if time else 0 for time in on_time(len(pictures))]
    encode(root / VIDEO, pictures, late)
    taken = ["--tolerance", "0.0101"]
    for words in (["delete", "--episodes", "0"], ["renumber"], ["split", "--part", "a=1-2"]):
        out = tmp_path / words[0]
        command = [words[0], str(root), *words[1:], "--out", str(out)]
        assert main(command) != 0 and not out.exists(), words
        assert main([*command, *taken]) == 0, words
    assert main(["merge", str(root), str(root), "--out", str(tmp_path / "two"), *taken]) == 0
    assert main(["compare", str(root), str(tmp_path / "renumber"), *taken]) == 0
    assert main(["stats", str(root)]) == 2
    assert main(["stats", str(root), *taken]) == 0


def test_a_videos_frame_times_are_read_without_decoding() -> None:
    with open_dataset(V21) as dataset:
        times = frame_times(V21 / VIDEO)
        assert np.abs(times - np.arange(dataset.episodes[2].length) / 30).max() < 1e-4


@pytest.mark.parametrize("indexed", [True, False])
def test_one_more_column_in_the_tasks_table_is_no_matter(tmp_path: Path, indexed: bool) -> None:
    root = copy_of(V30, tmp_path)
    path = root / "meta/tasks.parquet"
    table = pq.read_table(path)
    known = read_tasks(root, open_dataset(root).info)
    if not indexed:
        table = pa.table({"task": table["__index_level_0__"], "task_index": table["task_index"]})
    pq.write_table(table.append_column("category", pa.array(["a", "b"])), path)
    with open_dataset(root) as dataset:
        assert dataset.tasks == known
    assert verify_dataset(root).passed


def test_a_feature_of_two_dimensions_is_written_read_verified_and_carried(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    grid = rng.normal(size=(9, 3, 4)).astype(np.float32)
    features = {"observation.tactile": Feature("float32", (3, 4), None), "action": Feature("float32", (2,), None)}
    with DatasetWriter(tmp_path / "set", 30, features) as writer:
        for k in range(9):
            writer.add_frame({"observation.tactile": grid[k], "action": np.zeros(2, np.float32)}, "feel")
            if k % 3 == 2:
                writer.save_episode()
    assert verify_dataset(tmp_path / "set").passed
    delete(tmp_path / "set", [1], tmp_path / "kept")
    with open_dataset(tmp_path / "kept") as dataset:
        assert np.array_equal(dataset.column("observation.tactile"), grid[[0, 1, 2, 6, 7, 8]])
        flat = grid[[0, 1, 2, 6, 7, 8]].reshape(-1, 4)
        assert np.allclose(dataset.stats["observation.tactile"]["mean"], flat.mean(0), atol=1e-6), "as LeRobot's"
    plain = {name: value.tolist() for name, value in number_stats(grid, per_value=True).items() if name in NEEDED}
    stored = json.loads((tmp_path / "set/meta/stats.json").read_text())
    (tmp_path / "set/meta/stats.json").write_text(json.dumps(stored | {"observation.tactile": plain}))
    assert verify_dataset(tmp_path / "set").passed, "as LeRobot had them before 0.4.3"


def test_integers_for_times_are_read_as_seconds_where_no_value_changes(tmp_path: Path) -> None:
    """A rate of one frame a second: some writers store whole seconds."""
    features = {"action": Feature("float32", (2,), None)}
    with DatasetWriter(tmp_path / "set", 1, features) as writer:
        for _ in range(5):
            writer.add_frame({"action": np.zeros(2, np.float32)}, "wait")
        writer.save_episode()
    path = tmp_path / "set/data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    cells = pa.array([int(time) for time in table["timestamp"].to_pylist()], pa.int64())
    pq.write_table(table.set_column(table.schema.get_field_index("timestamp"), "timestamp", cells), path)
    with open_dataset(tmp_path / "set") as dataset:
        assert dataset.column("timestamp").tolist() == [0, 1, 2, 3, 4]
    info = json.loads((tmp_path / "set/meta/info.json").read_text())
    assert verify_dataset(tmp_path / "set").passed and info["fps"] == 1
    spans = tmp_path / "set/meta/episodes/chunk-000/file-000.parquet"
    assert pq.read_table(spans).num_rows == 1


def test_whole_numbers_for_places_in_a_video_are_seconds_and_whole_lengths_may_be_floats(tmp_path: Path) -> None:
    root = copy_of(V30, tmp_path)
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    row = pq.read_table(path).slice(0, 1)
    for name, value, kind in (
        (f"videos/{FRONT}/from_timestamp", 0, pa.int64()),
        (f"videos/{FRONT}/to_timestamp", 1, pa.int64()),
        ("dataset_to_index", 24.0, pa.float64()),
    ):
        row = row.set_column(row.schema.get_field_index(name), name, pa.array([value], kind))
    pq.write_table(row, path)
    (episode,) = read_episodes(root, read_info(root))
    assert (episode.videos[FRONT].from_s, episode.videos[FRONT].to_s, episode.length) == (0.0, 1.0, 24)
    assert type(episode.length) is int and type(episode.videos[FRONT].to_s) is float
