# SPDX-License-Identifier: Apache-2.0
"""Datasets as other tools write them: pictures channel-first, depth, nested names, columns of other number types."""

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

from vla_edge.errors import CheckFailed, DatasetError
from vla_edge.lerobot_data.editing.convert import convert_dataset
from vla_edge.lerobot_data.layout import IMAGE_AXES, flat_names, read_info
from vla_edge.lerobot_data.reader import open_dataset
from vla_edge.lerobot_data.recompute import recompute_stats
from vla_edge.lerobot_data.verification.verify import verify_dataset

DATA = Path(__file__).resolve().parents[1] / "data"
V21, V30 = DATA / "koch_v21", DATA / "koch_v30_official"
FRONT = "observation.images.front"


def changed_info(source: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    root = tmp_path / "set"
    shutil.copytree(source, root)
    info = json.loads((root / "meta/info.json").read_text())
    change(info["features"])
    (root / "meta/info.json").write_text(json.dumps(info))
    return root


@pytest.mark.parametrize(
    ("shape", "names"),
    [
        ([120, 160, 3], ["height", "width", "channels"]),
        ([120, 160, 3], ["height", "width", "rgb"]),
        ([120, 160, 3], None),
        ([3, 120, 160], ["channels", "height", "width"]),
        ([3, 120, 160], ["channel", "height", "width"]),
        ([3, 120, 160], {"axes": ["c", "h", "w"]}),
        ([3, 120, 160], None),
        ([160, 120, 3], ["width", "height", "channel"]),
        ([1, 120, 160], None),
    ],
)
def test_a_picture_has_its_height_and_width_whatever_the_order_of_its_axes(
    tmp_path: Path, shape: list[int], names: Any
) -> None:
    root = changed_info(V30, tmp_path, lambda features: features[FRONT].update(shape=shape, names=names))
    feature = read_info(root).features[FRONT]
    assert feature.shape == (120, 160, 1 if shape[0] == 1 else 3) and feature.names == IMAGE_AXES
    with open_dataset(root) as dataset:
        assert dataset.image(FRONT, 3).shape == (120, 160, 3)


@pytest.mark.parametrize("mark", ["is_depth_map", "video.is_depth_map"])
def test_depth_is_never_a_camera(tmp_path: Path, mark: str) -> None:
    root = changed_info(V30, tmp_path, lambda features: features[FRONT].setdefault("info", {}).update({mark: True}))
    info = read_info(root)
    assert FRONT not in info.camera_keys and info.left_out == {FRONT: "a depth map"}
    report = verify_dataset(root)
    assert report.passed and any(check.verdict == "untidy" for check in report.checks)


def test_names_are_read_in_their_order_however_they_are_nested() -> None:
    assert flat_names({"motors": ["a", "b"], "gripper": ["c"]}) == ["a", "b", "c"] == flat_names([["a"], ["b", "c"]])
    assert flat_names(None) == [] and flat_names({"axes": {"y": 1, "x": 0}}) == ["x", "y"]


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        ("action", pa.list_(pa.float64())),
        ("timestamp", pa.float64()),
        ("episode_index", pa.int32()),
        ("frame_index", pa.float64()),
        ("task_index", pa.uint8()),
    ],
)
def test_columns_of_another_number_type_are_read_as_info_says_and_converted(
    tmp_path: Path, column: str, kind: pa.DataType
) -> None:
    source = tmp_path / "source"
    shutil.copytree(V21, source)
    for path in source.glob("data/*/*.parquet"):
        table = pq.read_table(path)
        position = table.schema.get_field_index(column)
        pq.write_table(table.set_column(position, column, pa.array(table[column].to_pylist(), kind)), path)
    report = verify_dataset(source)
    told = next(check for check in report.checks if check.name == "tidy info")
    assert report.passed and told.verdict == "untidy" and column in (told.problems or ("",))[0]
    convert_dataset(source, tmp_path / "target")
    with open_dataset(tmp_path / "target") as ours, open_dataset(V21) as known:
        assert ours.column(column).dtype == known.column(column).dtype
        assert np.array_equal(ours.column(column), known.column(column))


def test_integers_whose_statistics_are_of_other_numbers_are_refused_with_what_mends_them(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(V21, source)
    for path in source.glob("data/*/*.parquet"):
        table = pq.read_table(path)
        whole = pa.array([[int(value) for value in row] for row in table["action"].to_pylist()], pa.list_(pa.int64()))
        pq.write_table(table.set_column(table.schema.get_field_index("action"), "action", whole), path)
    with pytest.raises(CheckFailed, match="quantiles of action do not rise .* with `vla-data stats .* --write`"):
        convert_dataset(source, tmp_path / "target")
    recompute_stats(source, write=True)
    convert_dataset(source, tmp_path / "target")
    with open_dataset(tmp_path / "target") as ours:
        assert ours.column("action").dtype == np.float32 and not (ours.column("action") % 1).any()


def test_a_value_that_would_change_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(V21, source)
    path = source / "data/chunk-000/episode_000001.parquet"
    table = pq.read_table(path)
    half = pa.array(np.arange(table.num_rows) + 0.5)
    pq.write_table(table.set_column(table.schema.get_field_index("frame_index"), "frame_index", half), path)
    with pytest.raises(DatasetError, match="frame_index is float64, info.json says int64, and a value would change"):
        open_dataset(source)


def test_an_annotated_dataset_is_read_without_its_words_and_total_tasks_may_be_missing(tmp_path: Path) -> None:
    language = {"dtype": "language", "shape": [1], "names": None}
    root = changed_info(V30, tmp_path, lambda features: features.update(language_persistent=language))
    info = json.loads((root / "meta/info.json").read_text())
    del info["total_tasks"]
    (root / "meta/info.json").write_text(json.dumps(info))
    with open_dataset(root) as dataset:
        assert "language_persistent" not in dataset.features and dataset.info.total_tasks is None
        assert dataset.info.left_out == {"language_persistent": "annotations in language"}
        assert dataset.frame(3).task


@pytest.mark.parametrize(
    "name",
    ["data/chunk-000/episode_000000.parquet", "meta/episodes.jsonl", f"videos/chunk-000/{FRONT}/episode_000000.mp4"],
)
def test_a_git_lfs_pointer_is_called_one(tmp_path: Path, name: str) -> None:
    source = tmp_path / "source"
    shutil.copytree(V21, source)
    (source / name).write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'ab' * 32}\nsize 90671\n")
    with pytest.raises(DatasetError, match=rf"{name}: a Git LFS pointer, not the file itself; run `git lfs pull`"):
        convert_dataset(source, tmp_path / "target")
    assert not verify_dataset(source).passed


def test_a_v20_dataset_is_sound_without_statistics_of_episodes_and_a_remedy_is_named_for_wrong_ones(
    tmp_path: Path,
) -> None:
    root = tmp_path / "set"
    shutil.copytree(V21, root)
    with open_dataset(V21) as dataset:
        stats = {key: {name: value.tolist() for name, value in entry.items()} for key, entry in dataset.stats.items()}
    (root / "meta/episodes_stats.jsonl").unlink()
    (root / "meta/stats.json").write_text(json.dumps(stats))
    info = json.loads((root / "meta/info.json").read_text())
    (root / "meta/info.json").write_text(json.dumps(info | {"codebase_version": "v2.0"}))
    assert verify_dataset(root).passed
    stats["action"]["max"][0] += 5.0
    (root / "meta/stats.json").write_text(json.dumps(stats))
    told = next(check.problems or () for check in verify_dataset(root).checks if check.name == "statistics")
    assert told[-1] == "`vla-data stats --write` computes them anew"
    recompute_stats(root, write=True)
    assert verify_dataset(root).passed
