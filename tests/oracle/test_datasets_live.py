# SPDX-License-Identifier: Apache-2.0
"""Datasets both ways with a live LeRobot: what we write, convert and edit it reads as we do, and its own edit tools and
recorder make the same tables and statistics.

Pictures: LeRobot encodes anew what its delete and split cut, so ours are held against the source's.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_edge.lerobot_data.editing.convert import convert_dataset
from vla_edge.lerobot_data.editing.episode_edits import delete, merge, parse_shares, renumber, split
from vla_edge.lerobot_data.layout import INDEX_FEATURES, Feature
from vla_edge.lerobot_data.reader import Dataset, open_dataset
from vla_edge.lerobot_data.recompute import recompute_stats
from vla_edge.lerobot_data.stats import NEEDED, QUANTILES
from vla_edge.lerobot_data.task_texts import assign_task
from vla_edge.lerobot_data.verification.verify import verify_dataset
from vla_edge.lerobot_data.writer import DatasetWriter

Ask = Callable[..., dict[str, Any]]
Read = dict[str, Any]
DATA = Path(__file__).resolve().parents[1] / "data"
V21, V30 = DATA / "koch_v21", DATA / "koch_v30_official"
COUNTED = ("index", "episode_index", "task_index")
"""Columns that are counted anew; LeRobot's delete and split leave their statistics as they were."""


@pytest.fixture(scope="module")
def koch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Koch dataset with all ten statistics."""
    root = tmp_path_factory.mktemp("koch") / "koch"
    shutil.copytree(V30, root)
    recompute_stats(root, write=True)
    return root


def read(lerobot: Ask, root: Path, tmp_path: Path) -> Read:
    """Everything LeRobot sees in a dataset. Pictures are [frames, 3, height, width]."""
    out = tmp_path / f"{root.parent.name}-{root.name}.npz"
    lerobot("dataset read", root=root, out=out)
    with np.load(out) as content:
        return {name: content[name] for name in content.files}


def frames(found: Read, pictures: bool = True) -> Read:
    """But the numbers of tasks, which their texts stand for."""
    return {
        name: value
        for name, value in found.items()
        if name.startswith("frames/") and name != "frames/task_index" and (pictures or value.dtype != np.uint8)
    }


def assert_equal(ours: Read, theirs: Read) -> None:
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not np.array_equal(ours[name], theirs[name])] == []


def assert_statistics(ours: Read, theirs: Read, without: tuple[str, ...] = ()) -> None:
    """Sums in another order: the last digits only."""
    names = {name for name in (*ours, *theirs) if name.startswith("stats/") and name.split("/")[1] not in without}
    assert names <= ours.keys() and names <= theirs.keys()
    for name in names:
        assert np.allclose(ours[name], theirs[name], rtol=1e-9, atol=1e-9), name
    assert {"stats/action/q01", "stats/observation.images.front/q99"} <= names


def seen_by_us(dataset: Dataset) -> Read:
    """As `frames` has them."""
    samples = list(dataset.frames())
    seen: Read = {f"frames/{camera}": np.stack([s.images[camera] for s in samples]).transpose(0, 3, 1, 2)
                  for camera in dataset.camera_keys}  # fmt: skip
    for key, feature in dataset.features.items():
        if not feature.is_camera and key != "task_index":
            seen[f"frames/{key}"] = dataset.column(key)
    return seen | {"frames/task": np.array([sample.task for sample in samples])}


def test_what_we_convert_lerobot_reads_as_we_do(lerobot: Ask, tmp_path: Path) -> None:
    convert_dataset(V21, tmp_path / "new")
    found = read(lerobot, tmp_path / "new", tmp_path)
    with open_dataset(V21) as source:
        assert_equal(frames(found), seen_by_us(source))


def test_merged(lerobot: Ask, koch: Path, tmp_path: Path) -> None:
    shutil.copytree(koch, tmp_path / "other")
    assign_task(tmp_path / "other", "wave", [2])
    recompute_stats(tmp_path / "other", write=True)
    merge([koch, tmp_path / "other", koch], tmp_path / "ours")
    lerobot("dataset merge", roots=[koch, tmp_path / "other", koch], out=tmp_path / "theirs")
    ours, theirs = (read(lerobot, tmp_path / name, tmp_path) for name in ("ours", "theirs"))
    assert_equal(frames(ours), frames(theirs))
    assert ours["tasks"] == theirs["tasks"] and ours["episodes"] == theirs["episodes"]
    assert_statistics(ours, theirs, COUNTED)


def test_thinned_out(lerobot: Ask, koch: Path, tmp_path: Path) -> None:
    delete(koch, [1], tmp_path / "ours")
    lerobot("dataset delete", root=koch, episodes=[1], out=tmp_path / "theirs")
    ours, theirs = (read(lerobot, tmp_path / name, tmp_path) for name in ("ours", "theirs"))
    assert_equal(frames(ours, pictures=False), frames(theirs, pictures=False))
    assert ours["episodes"] == theirs["episodes"]
    assert_statistics(ours, theirs, COUNTED)
    with open_dataset(koch) as source:
        kept = np.concatenate([np.arange(e.from_index, e.to_index) for e in source.episodes if e.index != 1])
        pictures = {name: value[kept] for name, value in seen_by_us(source).items() if value.dtype == np.uint8}
    assert pictures and all(np.array_equal(ours[name], value) for name, value in pictures.items())
    assert verify_dataset(tmp_path / "theirs").passed, "theirs is untidy at most"


def test_in_parts(lerobot: Ask, koch: Path, tmp_path: Path) -> None:
    split(koch, parse_shares(["train=0.5", "val=0.5"]), tmp_path / "ours")
    lerobot("dataset split", root=koch, shares={"train": 0.5, "val": 0.5}, out=tmp_path / "theirs")
    for part in ("train", "val"):
        ours, theirs = (read(lerobot, tmp_path / name / part, tmp_path) for name in ("ours", "theirs"))
        assert_equal(frames(ours, pictures=False), frames(theirs, pictures=False))
        assert ours["episodes"] == theirs["episodes"]
        assert_statistics(ours, theirs, COUNTED)


def test_numbered_anew(lerobot: Ask, koch: Path, tmp_path: Path) -> None:
    renumber(koch, tmp_path / "ours")
    ours, before = read(lerobot, tmp_path / "ours", tmp_path), read(lerobot, koch, tmp_path)
    assert_equal(frames(ours), frames(before))
    assert ours["tasks"] == before["tasks"] and ours["episodes"] == before["episodes"]
    assert_statistics(ours, before)


def test_with_tasks_assigned(lerobot: Ask, koch: Path, tmp_path: Path) -> None:
    for name in ("ours", "theirs"):
        shutil.copytree(koch, tmp_path / name)
    assign_task(tmp_path / "ours", "wave", [0, 3])
    lerobot("dataset assign", root=tmp_path / "theirs", text="wave", episodes=[0, 3])
    ours, theirs = (read(lerobot, tmp_path / name, tmp_path) for name in ("ours", "theirs"))
    assert_equal(frames(ours), frames(theirs))
    assert ours["episodes"] == theirs["episodes"]


FEATURES = {
    "observation.images.top": Feature("video", (64, 96, 3), ["height", "width", "channels"]),
    "observation.state": Feature("float32", (3,), ["a", "b", "c"]),
    "observation.tactile": Feature("float32", (2, 4), None),
    "action": Feature("float32", (3,), ["a", "b", "c"]),
    "done": Feature("bool", (1,), None),
    "count": Feature("int64", (1,), None),
}
LENGTHS, TASKS = (11, 7, 120), ("lift", "drop", "lift")


def recording() -> dict[str, np.ndarray]:
    rng, count = np.random.default_rng(7), sum(LENGTHS)
    blocks = rng.integers(0, 256, (count, 8, 12, 3), np.uint8)
    return {
        "observation.images.top": np.repeat(np.repeat(blocks, 8, 1), 8, 2),
        "observation.state": rng.normal(size=(count, 3)).astype(np.float32).cumsum(0),
        "observation.tactile": rng.normal(size=(count, 2, 4)).astype(np.float32),
        "action": rng.normal(size=(count, 3)).astype(np.float32),
        "done": (np.arange(count) % 5 == 0)[:, None],
        "count": np.arange(count)[:, None],
    }


def test_what_lerobot_records_we_read_as_it_does_and_our_statistics_are_its_own(lerobot: Ask, tmp_path: Path) -> None:
    np.savez(tmp_path / "values.npz", **recording())  # type: ignore[arg-type]
    features = {key: {"dtype": f.dtype, "shape": f.shape, "names": f.names} for key, f in FEATURES.items()}
    lerobot(
        "dataset record", out=tmp_path / "theirs", values=tmp_path / "values.npz", fps=30, features=features,
        lengths=LENGTHS, tasks=TASKS,
    )  # fmt: skip
    assert verify_dataset(tmp_path / "theirs").passed
    found = read(lerobot, tmp_path / "theirs", tmp_path)
    with open_dataset(tmp_path / "theirs") as dataset:
        ours = seen_by_us(dataset)
        for name, value in frames(found).items():
            assert np.array_equal(ours[name].reshape(value.shape), value), name
    computed, _ = recompute_stats(tmp_path / "theirs")
    for key in FEATURES:
        if FEATURES[key].is_camera:
            continue  # LeRobot's are of the pictures before they were encoded
        width = computed[key]["max"].astype(float) - computed[key]["min"]
        for name in NEEDED:
            stored = found[f"stats/{key}/{name}"]
            assert np.allclose(computed[key][name], stored, atol=1e-5, rtol=1e-5), (key, name)
        for name in QUANTILES:
            off = np.abs(computed[key][name] - found[f"stats/{key}/{name}"])
            spacing = 4 / np.sqrt(min(LENGTHS))  # between two neighbouring values LeRobot takes some point
            assert (off <= width * spacing).all(), (key, name)


def test_what_we_record_lerobot_reads_as_we_do(lerobot: Ask, tmp_path: Path) -> None:
    values, frame = recording(), 0
    with DatasetWriter(tmp_path / "ours", 30, FEATURES, robot_type="koch") as writer:
        for length, task in zip(LENGTHS, TASKS):
            for _ in range(length):
                writer.add_frame({key: column[frame] for key, column in values.items()}, task)
                frame += 1
            writer.save_episode()
    found = read(lerobot, tmp_path / "ours", tmp_path)
    with open_dataset(tmp_path / "ours") as dataset:
        ours = seen_by_us(dataset)
        for name, value in frames(found).items():
            assert np.array_equal(ours[name].reshape(value.shape), value), name
        stored = dataset.stats
    for key in (*FEATURES, *INDEX_FEATURES):
        for name in (*NEEDED, *QUANTILES):
            assert np.array_equal(found[f"stats/{key}/{name}"], stored[key][name])
    assert json.loads(str(found["tasks"])) == {"lift": 0, "drop": 1}
