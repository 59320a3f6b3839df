# SPDX-License-Identifier: Apache-2.0
"""Planted corruptions each fail the check that names them; `vla-data` from the command line."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from vla_edge.errors import DatasetError
from vla_edge.lerobot_data.command import main
from vla_edge.lerobot_data.compare_data import compare_datasets
from vla_edge.lerobot_data.meta import read_episode_stats
from vla_edge.lerobot_data.reader import open_dataset
from vla_edge.lerobot_data.recompute import largest_difference, recompute_stats
from vla_edge.lerobot_data.stats import NEEDED, QUANTILES
from vla_edge.lerobot_data.verification.verify import CHECKS, verify_dataset

DATA = Path(__file__).parents[1] / "data"
V21, V30 = DATA / "koch_v21", DATA / "koch_v30_official"
FRONT = "observation.images.front"
V30_TABLE, V30_ROWS = "data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"
V30_VIDEO = f"videos/{FRONT}/chunk-000/file-000.mp4"
V21_TABLE = "data/chunk-000/episode_000001.parquet"
V21_VIDEO = f"videos/chunk-000/{FRONT}/episode_000001.mp4"
Damage = Callable[[Path], None]


def remove(name: str) -> Damage:
    def damage(root: Path) -> None:
        path = root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def text(name: str, old: str, new: str) -> Damage:
    def damage(root: Path) -> None:
        before = (root / name).read_text()
        assert old in before
        (root / name).write_text(before.replace(old, new, 1))

    return damage


def truncate(name: str, keep: float) -> Damage:
    def damage(root: Path) -> None:
        content = (root / name).read_bytes()
        (root / name).write_bytes(content[: int(len(content) * keep)])

    return damage


def cell(name: str, column: str, row: int, value: object) -> Damage:
    """Set one cell of a parquet column, keeping its type."""

    def damage(root: Path) -> None:
        table = pq.read_table(root / name)
        position = table.schema.get_field_index(column)
        values = table[column].to_pylist()
        assert values[row] != value
        values[row] = value
        kind = table.schema.field(column).type
        pq.write_table(table.set_column(position, table.schema.field(column), pa.array(values, kind)), root / name)

    return damage


def column(name: str, change: Callable[[pa.Table], pa.Table]) -> Damage:
    def damage(root: Path) -> None:
        pq.write_table(change(pq.read_table(root / name)), root / name)

    return damage


def as_double(table: pa.Table) -> pa.Table:
    return table.set_column(0, "action", table["action"].cast(pa.list_(pa.float64())))


def as_text(table: pa.Table) -> pa.Table:
    return table.set_column(0, "action", pa.array([["x"] * 6] * table.num_rows))


def annotate(root: Path) -> None:
    """A column of LeRobot 0.6's language annotations."""
    words = [{"role": "assistant", "content": "go", "timestamp": 0.0}]
    table = pq.read_table(root / V30_TABLE)
    kind = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string()), ("timestamp", pa.float32())]))
    column = pa.array([words] * table.num_rows, kind)
    pq.write_table(table.append_column("language_persistent", column), root / V30_TABLE)
    info = json.loads((root / INFO).read_text())
    info["features"]["language_persistent"] = {"dtype": "language", "shape": [1], "names": None}
    (root / INFO).write_text(json.dumps(info))


def add_to_timestamps(table: pa.Table) -> pa.Table:
    late = pa.array(table["timestamp"].to_numpy() + np.float32(0.002))
    return table.set_column(table.schema.get_field_index("timestamp"), "timestamp", late)


def cut_video_short(root: Path) -> None:
    """The file stays a sound video, of the first episode's 24 frames only."""
    shutil.copy(V21 / "videos/chunk-000" / FRONT / "episode_000000.mp4", root / V30_VIDEO)


def swap_frames(table: pa.Table) -> pa.Table:
    return table.take([1, 0, *range(2, table.num_rows)])


INFO = "meta/info.json"
CORRUPTIONS: dict[str, list[tuple[Path, Damage]]] = {
    "folders": [(V30, remove("videos")), (V21, remove("data")), (V30, remove("meta/episodes"))],
    "meta files": [
        (V30, remove("meta/tasks.parquet")),
        (V30, remove("meta/stats.json")),
        (V21, remove("meta/episodes_stats.jsonl")),
        (V21, remove(INFO)),
    ],
    "metadata": [
        (V30, text(INFO, '"fps": 30', '"fpz": 30')),
        (V21, truncate("meta/episodes.jsonl", 0.7)),
        (V30, truncate("meta/tasks.parquet", 0.5)),
        (V21, text("meta/tasks.jsonl", '"task_index": 1', '"task_index": 0')),
        (V30, text(INFO, "chunk-{chunk_index:03d}/file-{file_index:03d}.parquet", "chunk-{chunk}/file.parquet")),
    ],
    "version": [
        (V30, text(INFO, '"v3.0"', '"v2.0"')),
        (V30, text(INFO, '"v3.0"', '"v2.1"')),
        (V21, text(INFO, '"v2.1"', '"v3.0"')),
    ],
    "features": [
        (V21, column(V21_TABLE, lambda table: table.drop_columns(["observation.state"]))),
        (V30, column(V30_TABLE, lambda table: table.append_column("extra", table["index"]))),
        (V30, text(INFO, '"video.height": 120', '"video.height": 240')),
    ],
    "counts": [
        (V30, text(INFO, '"total_episodes": 4', '"total_episodes": 5')),
        (V21, text(INFO, '"total_frames": 100', '"total_frames": 99')),
        (V30, text(INFO, '"total_tasks": 2', '"total_tasks": 1')),
        (V30, text(INFO, '"0:4"', '"0:9"')),
        (V21, text(INFO, '"total_videos": 8', '"total_videos": 4')),
        (V30, cell(V30_ROWS, "length", 2, 17)),
        (V21, column(V21_TABLE, lambda table: table.slice(0, 30))),
    ],
    "sample": [(V21, remove(f"videos/chunk-000/{FRONT}/episode_000000.mp4")), (V30, truncate(V30_VIDEO, 0.3))],
    "statistics": [
        (V30, text("meta/stats.json", "14.416541380882263", "15.416541380882263")),
        (V21, text("meta/episodes_stats.jsonl", '"max": [48.11603546142578', '"max": [47.0')),
        (V30, cell(V30_ROWS, "stats/action/std", 1, [1.0] * 6)),
        (V30, cell(V30_TABLE, "action", 50, [float("nan")] * 6)),
    ],
    "indices": [
        (V30, cell(V30_TABLE, "index", 30, 31)),
        (V21, cell(V21_TABLE, "frame_index", 3, 4)),
        (V30, column(V30_TABLE, swap_frames)),
        (V30, cell(V30_ROWS, "dataset_from_index", 2, 54)),
    ],
    "episode files": [
        (V30, cell(V30_ROWS, "data/file_index", 3, 1)),
        (V21, remove(V21_VIDEO)),
        (V30, cell(V30_ROWS, f"videos/{FRONT}/file_index", 1, 1)),
        (V21, cell(V21_TABLE, "episode_index", 3, 2)),
    ],
    "timestamps": [(V30, cell(V30_TABLE, "timestamp", 40, 0.6)), (V21, column(V21_TABLE, add_to_timestamps))],
    "video ends": [
        (V21, truncate(V21_VIDEO, 0.5)),
        (V30, cut_video_short),
        (V30, cell(V30_ROWS, f"videos/{FRONT}/from_timestamp", 2, 0.8)),
        (V30, cell(V30_ROWS, f"videos/{FRONT}/to_timestamp", 3, 2.5)),
    ],
    "task indices": [
        (V30, cell(V30_TABLE, "task_index", 10, 7)),
        (V21, cell(V21_TABLE, "task_index", 10, 0)),
        (V30, cell(V30_ROWS, "tasks", 0, ["Push the green button"])),
    ],
    "tidy rows": [(V30, cell(V30_ROWS, "meta/episodes/file_index", 1, 1))],
    "tidy info": [(V30, column(V30_TABLE, as_double)), (V21, text(INFO, '"total_tasks": 2,', "")), (V30, annotate)],
    "tidy statistics": [
        (V30, text("meta/stats.json", '"index"', '"indexx"')),
        (V21, text("meta/episodes_stats.jsonl", '"episode_index": {"min": [2]', '"episode_index": {"min": [7]')),
    ],
    "statistics finite": [
        (V30, text("meta/stats.json", "14.416541380882263", "NaN")),
        (V30, cell(V30_ROWS, "stats/action/max", 1, [float("inf")] * 6)),
        (V21, text("meta/episodes_stats.jsonl", '"mean": [27.35289764404297', '"mean": [NaN')),
    ],
}


@pytest.mark.parametrize("root", [V21, V30], ids=["v2.1", "v3.0"])
def test_a_sound_dataset_passes_every_check(root: Path) -> None:
    report = verify_dataset(root)
    assert [(check.name, check.verdict) for check in report.checks] == [(check.name, "passed") for check in CHECKS]


def test_every_check_has_a_corruption() -> None:
    assert set(CORRUPTIONS) == {check.name for check in CHECKS} and len(CHECKS) == 17


@pytest.mark.parametrize(
    ("name", "number"), [(name, number) for name, cases in CORRUPTIONS.items() for number in range(len(cases))]
)
def test_a_planted_corruption_fails_the_check_that_names_it(tmp_path: Path, name: str, number: int) -> None:
    source, damage = CORRUPTIONS[name][number]
    shutil.copytree(source, tmp_path / "set")
    damage(tmp_path / "set")
    report = verify_dataset(tmp_path / "set")
    untidy = name.startswith("tidy")
    assert report.passed == untidy
    verdicts = {check.name: (check.verdict, check.problems) for check in report.checks}
    assert verdicts[name][0] == ("untidy" if untidy else "failed"), verdicts


def scramble(path: Path, rng: np.random.Generator) -> None:
    """Cut the file, overwrite bytes, or put a value of another type into its JSON."""
    content = bytearray(path.read_bytes())
    kind = int(rng.integers(3))
    if kind == 0:
        content = content[: int(rng.integers(len(content)))]
    elif kind == 1:
        for place in rng.integers(0, len(content), 8):
            content[place] = int(rng.integers(256))
    else:
        words = [b"null", b"-1", b"1e400", b"[]", b"{}", b'"x"', b"true"]
        numbers = [
            match.span() for match in re.finditer(rb'(?<=[:\[ ])(-?[0-9.]+|"[^"]*")(?=[,\]}\n])', bytes(content))
        ]
        if numbers:
            first, last = numbers[int(rng.integers(len(numbers)))]
            content[first:last] = words[int(rng.integers(len(words)))]
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("source", [V21, V30], ids=["v2.1", "v3.0"])
def test_files_damaged_at_random_never_end_in_a_traceback(tmp_path: Path, source: Path) -> None:
    rng = np.random.default_rng(7)
    files = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
    for number in range(40):
        root = copy_of(source, tmp_path / str(number))
        scramble(root / files[number % len(files)], rng)
        verify_dataset(root)
        try:
            with open_dataset(root) as dataset:
                for index in range(0, len(dataset), 33):
                    dataset.frame(index)
        except DatasetError as error:
            assert str(tmp_path) in str(error), "it names the file"


def copy_of(source: Path, tmp_path: Path) -> Path:
    shutil.copytree(source, tmp_path / "set")
    return tmp_path / "set"


def test_verify_prints_json_and_exits_1_on_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = copy_of(V30, tmp_path)
    assert main(["verify", str(root), "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["passed"] and report["version"] == "v3.0" and len(report["checks"]) == 17
    cell(V30_ROWS, "data/file_index", 3, 1)(root)
    assert main(["verify", str(root), "--json"]) == 1
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [check["name"] for check in report["checks"] if check["result"] == "failed"] == ["episode files"]


def test_convert_and_compare_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "new"
    assert main(["convert", str(V21), str(target), "--data-file-mb", "0.003", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["frames"] == 100
    assert main(["compare", str(V21), str(target), "--samples", "5"]) == 0
    assert capsys.readouterr().out == "equal\n"
    cell("data/chunk-000/file-001.parquet", "observation.state", 0, [0.0] * 6)(target)
    assert main(["compare", str(V21), str(target), "--json"]) == 1
    assert "episode 1: observation.state differs at frame 0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["verify", "{tmp}/nowhere"], "nowhere does not exist"),
        (["stats", "{tmp}/nowhere"], "nowhere does not exist"),
        (["convert", str(V30), "{tmp}/new"], "is v3.0"),
        (["convert", str(V21), "{tmp}"], "exists already; choose another folder"),
        (["compare", str(V21), "{tmp}"], "info.json is missing"),
        (["compare", str(V21), str(V30), "--samples", "0"], "samples is 0"),
        (["tasks", str(V30), "--tokenizer", "{tmp}"], "no tokenizer at"),
        (["tasks", str(V30), "--rename", "no such", "x"], "has no task 'no such'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main([word.replace("{tmp}", str(tmp_path)) for word in words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


@pytest.mark.parametrize(
    ("source", "damage", "message"),
    [
        (V30, text(INFO, '"v3.0"', '"v1.6"'), "codebase_version is 'v1.6'"),
        (V30, column(V30_TABLE, lambda table: table.drop_columns(["action"])), "column action is missing"),
        (V30, truncate(V30_VIDEO, 0.3), "file-000.mp4 cannot be decoded at 0.8333 s"),
        (V21, lambda root: (root / "meta/episodes.jsonl").write_text(""), "holds no episode"),
        (V30, column(V30_TABLE, as_text), "action is object, info.json says float32"),
        (V30, cell(V30_TABLE, "action", 3, None), "column action has 1 empty cells"),
        (V30, cell(V30_TABLE, "action", 3, [1.0]), "holds 595 numbers in 100 rows"),
    ],
)
def test_unreadable_datasets_are_named_by_file_and_field(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], source: Path, damage: Damage, message: str
) -> None:
    root = copy_of(source, tmp_path)
    damage(root)
    assert main(["stats", str(root)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error


@pytest.mark.parametrize("source", [V21, V30], ids=["v2.1", "v3.0"])
def test_recomputed_statistics_replace_the_stored_ones(tmp_path: Path, source: Path) -> None:
    root = copy_of(source, tmp_path)
    computed, stored = recompute_stats(root)
    for key in ("action", "observation.state", "timestamp", "index"):
        assert largest_difference(key, computed, stored) < 1e-6, "LeRobot sums in float32"
    assert main(["stats", str(root), "--write"]) == 0
    again, now_stored = recompute_stats(root)
    assert all(largest_difference(key, again, now_stored) == 0 for key in again)
    assert verify_dataset(root).passed
    assert sorted(path.name for path in root.iterdir()) == ["data", "meta", "videos"]


def test_recomputed_image_statistics_equal_numpy_over_the_decoded_frames() -> None:
    computed, _ = recompute_stats(V30)
    with open_dataset(V30) as dataset:
        pixels = np.stack([dataset.image(FRONT, i) for i in range(100)]).reshape(-1, 3) / 255.0
    # numpy adds 1.9 million pixels one by one: 1e-9 of numbers below 1. Ours are whole-number sums.
    for name, value in (
        ("mean", pixels.mean(0)),
        ("std", pixels.std(0)),
        ("min", pixels.min(0)),
        ("max", pixels.max(0)),
    ):
        assert np.allclose(computed[FRONT][name].ravel(), value, rtol=0, atol=1e-9)


def tokenizer_file(folder: Path) -> Path:
    """One token per character of a few, unknown ones too: token count = characters."""
    vocabulary = {"?": 0} | {letter: 1 + i for i, letter in enumerate("abcdefghijklmnopqrstuvwxyz .\nPT")}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=64)
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def test_task_texts_are_counted_with_the_newline_and_without_truncation_or_padding(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tokenizer_file(tmp_path / "bundle")
    texts = ["Pick up the red cube and place it in the blue bowl.", "Push the green button"]
    for given_path in (path, path.parent):
        assert main(["tasks", str(V30), "--tokenizer", str(given_path), "--json"]) == 1
        report = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert report["limit"] == 48
        assert [row["tokens"] for row in report["tasks"]] == [len(line) + 1 for line in texts]
        assert [row["too_long"] for row in report["tasks"]] == [True, False]
        assert [(row["episodes"], row["frames"]) for row in report["tasks"]] == [(2, 42), (2, 58)]
    (path.parent / "config.json").write_text('{"tokenizer_max_length": 60, "vlm_model_name": "vlm"}')
    assert main(["tasks", str(V30), "--tokenizer", str(path.parent)]) == 0
    assert "52 of 60 tokens" in capsys.readouterr().out
    assert main(["tasks", str(V30), "--tokenizer", str(path), "--limit", "20"]) == 1


@pytest.mark.parametrize("source", [V21, V30], ids=["v2.1", "v3.0"])
def test_tasks_are_added_and_renamed_and_the_dataset_stays_sound(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], source: Path
) -> None:
    root = copy_of(source, tmp_path)
    assert main(["tasks", str(root), "--rename", "Push the green button", "Drück den grünen Knopf"]) == 0
    assert main(["tasks", str(root), "--add", "Wave"]) == 0
    assert verify_dataset(root).passed
    with open_dataset(root) as dataset:
        assert dataset.tasks == {
            0: "Pick up the red cube and place it in the blue bowl.",
            1: "Drück den grünen Knopf",
            2: "Wave",
        }
        assert dataset.frame(30, ()).task == "Drück den grünen Knopf" and dataset.episodes[1].tasks == (
            dataset.tasks[1],
        )
    assert all("task" in difference for difference in compare_datasets(source, root))
    capsys.readouterr()
    assert main(["tasks", str(root), "--add", "Wave"]) == 2
    assert main(["tasks", str(root), "--rename", "Wave", " "]) == 2
    assert "already" in capsys.readouterr().err
    assert sorted(path.name for path in root.iterdir()) == ["data", "meta", "videos"]


@pytest.mark.parametrize("size", ["0", "-1", "nan", "inf"])
def test_a_file_size_that_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], size: str) -> None:
    for flag in ("--data-file-mb", "--video-file-mb"):
        assert main(["convert", str(V21), str(tmp_path / "new"), f"{flag}={size}"]) == 2
        assert "is not a number above 0" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_missing_video_is_named_by_convert_and_an_empty_episode_list_by_verify(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = copy_of(V21, tmp_path)
    (root / "videos/chunk-000" / FRONT / "episode_000001.mp4").unlink()
    assert main(["convert", str(root), str(tmp_path / "new")]) == 2
    assert "episode_000001.mp4 is missing" in capsys.readouterr().err and not (tmp_path / "new").exists()
    (root / "meta/episodes.jsonl").write_text("")
    assert main(["verify", str(root)]) == 1


@pytest.mark.parametrize("source", [V21, V30], ids=["v2.1", "v3.0"])
@pytest.mark.parametrize("lost", [True, False], ids=["missing", "damaged"])
def test_missing_and_damaged_statistics_are_written_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], source: Path, lost: bool
) -> None:
    root = copy_of(source, tmp_path)
    file = root / ("meta/episodes_stats.jsonl" if source is V21 else "meta/stats.json")
    file.unlink() if lost else file.write_text("{")
    assert main(["stats", str(root)]) == 2 and "vla-data stats --write" in capsys.readouterr().err
    assert main(["stats", str(root), "--write"]) == 0 and verify_dataset(root).passed


@pytest.mark.parametrize("source", [V21, V30], ids=["v2.1", "v3.0"])
def test_writing_statistics_gives_all_ten_and_keeps_what_is_not_computed(tmp_path: Path, source: Path) -> None:
    root = copy_of(source, tmp_path)
    files = [root / "meta/stats.json"] if source is V30 else []
    for file in files:
        stats = json.loads(file.read_text())
        stats["action"]["q05"], stats["note"] = [1.5] * 6, {"count": [1]}
        file.write_text(json.dumps(stats))
    assert main(["stats", str(root), "--write"]) == 0 and verify_dataset(root).passed
    with open_dataset(root) as dataset:
        for key in dataset.features:
            assert set(dataset.stats[key]) >= {*NEEDED, *QUANTILES}
        assert all(set(part["action"]) >= set(QUANTILES) for part in read_episode_stats(root, dataset.info).values())
    for file in files:
        assert json.loads(file.read_text())["action"]["q05"] == [1.5] * 6
        assert json.loads(file.read_text())["note"] == {"count": [1]}


def test_paths_that_lead_out_of_the_dataset_and_a_rate_in_words_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, (old, new) in enumerate(
        [('"videos/', '"../'), ('"videos/', '"/videos/'), ('"fps": 30,\n    "splits"', '"fps": "30",\n    "splits"')]
    ):
        root = copy_of(V30, tmp_path / str(number))
        file = root / "meta/info.json"
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new))
        assert main(["tasks", str(root)]) == 2
        told = capsys.readouterr().err
        assert ("leads out of the dataset" if number < 2 else "'30', not a number") in told


def test_a_token_limit_below_one_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks", str(V30), "--limit", "0"]) == 2 and "not a whole number from 1 up" in capsys.readouterr().err
