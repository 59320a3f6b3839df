# SPDX-License-Identifier: Apache-2.0
"""What a run reads: frames that cannot be decoded, relative actions, features that are left out, times that jitter."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tests.training.training_world import CAMERA, World, one_thread, write_data, write_policy

from vla_edge.export.assemble import ExportRequest, export_bundle
from vla_edge.lerobot_data.layout import read_info
from vla_edge.lerobot_data.reader import open_dataset
from vla_edge.policies.smolvla.policy import SmolVLAPolicy
from vla_edge.training.command import main
from vla_edge.training.loop import fault_advice
from vla_edge.training.run_config import TaskData, TrainConfig
from vla_edge.training.statistics import names_or_numbers
from vla_edge.training.training_frames import Frames, FrameSettings, collate

one_thread()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    write_policy(root / "policy", chunk_size=3, n_action_steps=3)
    write_data(root / "data", World(episodes=3, length=6))
    write_data(root / "film", World(episodes=3, length=6, video=True))
    return root


def copy_of(source: Path, tmp_path: Path) -> Path:
    shutil.copytree(source, tmp_path / source.name)
    return tmp_path / source.name


def train(policy: Path, data: Path, run: Path, *words: str) -> int:
    given = ["--steps", "2", "--batch-size", "18", "--device", "cpu", "--out", str(run), *words]
    return main(["fine-tune", "--checkpoint", str(policy), "--dataset", str(data), *given])


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_frame_that_cannot_be_read_is_one_line_with_dataset_and_frame(
    world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], workers: str
) -> None:
    data = copy_of(world / "data", tmp_path)
    path = data / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    cells = table[CAMERA].to_pylist()
    cells[8] = {"bytes": b"not a picture", "path": "x.png"}
    broken = pa.array(cells, table.schema.field(CAMERA).type)
    pq.write_table(table.set_column(table.schema.get_field_index(CAMERA), CAMERA, broken), path)
    assert train(world / "policy", data, tmp_path / "run", "--workers", workers) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error")]
    assert len(lines) == 1 and f"{data}: frame 8 (episode 1): " in lines[0] and "--episodes" in lines[0]
    assert "Traceback" not in lines[0]


def relative_policy(source: Path, folder: Path) -> Path:
    """As LeRobot 0.6 writes a policy with use_relative_actions: a pair of steps, the second joint excluded."""
    shutil.copytree(source, folder)
    before = {"enabled": True, "exclude_joints": ["joint_1"], "action_names": ["joint_0", "joint_1"]}
    for name, place, step, settings in (
        ("policy_preprocessor", 5, "relative_actions_processor", before),
        ("policy_postprocessor", 1, "absolute_actions_processor", {"enabled": True}),
    ):
        content = json.loads((folder / f"{name}.json").read_text())
        content["steps"].insert(place, {"registry_name": step, "config": settings})
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_a_relative_policy_is_trained_on_actions_counted_from_the_frames_own_state(world: Path, tmp_path: Path) -> None:
    policy = SmolVLAPolicy.from_pretrained(relative_policy(world / "policy", tmp_path / "relative"))
    data = Frames(TaskData("data", str(world / "data")), FrameSettings((CAMERA,), 3, 0))
    samples = [data.sample(number, 0) for number in (0, 4, 5)]
    batch = collate(samples, policy)
    for row, sample in enumerate(samples):
        wanted = sample.actions - np.array([sample.state[0], 0], np.float32)  # the policy's statistics are 0 and 1
        assert torch.allclose(batch["action"][row, :, :2], torch.from_numpy(wanted), atol=1e-5)
    assert bool(batch["action_is_pad"][2, 1]) and not bool(batch["action_is_pad"][0, 1])


def test_a_run_of_a_relative_policy_saves_one_that_gives_joint_values_again(world: Path, tmp_path: Path) -> None:
    policy = relative_policy(world / "policy", tmp_path / "relative")
    assert train(policy, world / "data", tmp_path / "refused") == 2, "the data's statistics are of joint values"
    assert train(policy, world / "data", tmp_path / "run", "--statistics", "checkpoint") == 0
    saved = SmolVLAPolicy.from_pretrained(tmp_path / "run/checkpoints/last/pretrained_model")
    state = torch.tensor([[3.0, 5.0]])
    moved = saved.postprocess(torch.zeros(1, 3, 2), state) - saved.postprocess(torch.zeros(1, 3, 2), 0 * state)
    assert torch.allclose(moved, torch.tensor([3.0, 0.0]).expand(1, 3, 2), atol=1e-5)


def test_a_relative_policy_is_evaluated_in_joint_values_as_checkpoint_and_bundle(world: Path, tmp_path: Path) -> None:
    policy = relative_policy(world / "policy", tmp_path / "relative")
    export_bundle(ExportRequest(policy, tmp_path / "bundle", threads=1), lambda step: None)
    found = {}
    for name, path in (("plain", world / "policy"), ("relative", policy), ("bundle", tmp_path / "bundle")):
        words = ["--dataset", str(world / "data"), "--episodes", "0", "--stride", "2", "--out", str(tmp_path / name)]
        words[-1] += ".npz"
        assert main(["evaluate", str(path), *words]) == 0
        with np.load(tmp_path / f"{name}.npz") as content:
            found[name] = (content["index"], content["action"])
    with open_dataset(world / "data") as dataset:
        states = dataset.column("observation.state")[found["plain"][0]]
    wanted = found["plain"][1] + np.stack([states[:, 0], 0 * states[:, 0]], -1)[:, None]
    assert np.abs(found["relative"][1] - wanted).max() <= 1e-4
    assert np.abs(found["bundle"][1] - wanted).max() <= 1e-4


def test_what_is_left_out_of_the_data_is_said(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = copy_of(world / "data", tmp_path)
    info = json.loads((data / "meta/info.json").read_text())
    info["features"]["language_events"] = {"dtype": "language", "shape": [1], "names": None}
    (data / "meta/info.json").write_text(json.dumps(info))
    assert train(world / "policy", data, tmp_path / "run") == 0
    assert "language_events is left out: annotations in language" in " ".join(capsys.readouterr().out.split())


def test_data_whose_pictures_come_late_are_trained_on_with_a_tolerance(
    world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = copy_of(world / "film", tmp_path)
    path = data / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    name = f"videos/{CAMERA}/from_timestamp"
    late = pa.array([start + 0.02 for start in table[name].to_pylist()], pa.float64())
    pq.write_table(table.set_column(table.schema.get_field_index(name), name, late), path)
    assert train(world / "policy", data, tmp_path / "strict") == 2
    assert "has no frame at" in capfd.readouterr().err
    assert train(world / "policy", data, tmp_path / "run", "--tolerance", "0.03", "--workers", "1") == 0
    evaluation = ["evaluate", str(world / "policy"), "--dataset", str(data), "--episodes", "0"]
    assert main(evaluation) == 2
    assert main([*evaluation, "--tolerance", "0.03"]) == 0
    anchors = ["anchors", "--checkpoint", str(world / "policy"), "--dataset", str(data), "--count", "2", "--out"]
    assert main([*anchors, str(tmp_path / "anchors")]) == 2
    assert main([*anchors, str(tmp_path / "anchors"), "--tolerance", "0.03"]) == 0
    with open_dataset(world / "film") as dataset, open_dataset(data, tolerance_s=0.03) as shifted:
        assert all(np.array_equal(dataset.image(CAMERA, i), shifted.image(CAMERA, i)) for i in range(len(dataset)))


@pytest.mark.parametrize(
    ("names", "read"),
    [
        ({"motors": ["a", "b"]}, ("a", "b")),
        ({"left": ["a"], "right": ["b"]}, ("a", "b")),
        ([["a"], ["b"]], ("a", "b")),
        (["a"], ("0", "1")),
        (["a", "b", "c"], ("0", "1")),
        (None, ("0", "1")),
        ({"b": 1, "a": 0}, ("a", "b")),
    ],
)
def test_joints_have_their_names_in_order_or_their_places(
    world: Path, tmp_path: Path, names: Any, read: tuple[str, ...]
) -> None:
    data = copy_of(world / "data", tmp_path)
    info = json.loads((data / "meta/info.json").read_text())
    for key in ("action", "observation.state"):
        info["features"][key]["names"] = names
    (data / "meta/info.json").write_text(json.dumps(info))
    with open_dataset(data) as dataset:
        assert names_or_numbers(dataset) == read
        assert read_info(data).features["action"].names == names


def test_what_travels_to_a_loader_process_holds_no_open_decoder_and_reads_the_same(world: Path) -> None:
    frames = Frames(TaskData("data", str(world / "data")), FrameSettings((CAMERA,), 1, 0))
    frames.room = 2**23
    here = frames.sample(3, 0)
    sent = pickle.loads(pickle.dumps(frames))
    assert sent.__dict__["_dataset"] is None and sent.__dict__["_kept"] == {}
    assert np.array_equal(sent.sample(3, 0).images[CAMERA], here.images[CAMERA])


def test_loaders_that_hang_end_the_run_with_what_to_do(world: Path) -> None:
    config = TrainConfig("policy", "out", (TaskData("data", "data"),), workers=2)
    told = fault_advice(RuntimeError("DataLoader timed out after 600 seconds"), config, "none yet")
    assert told is not None and "2 loader processes" in str(told) and "--workers 0" in str(told)
