# SPDX-License-Identifier: Apache-2.0
"""The two commands people start with, on stand-ins of the right shape, from their data to a chunk of the bundle."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vla_edge.bundle import open_bundle
from vla_edge.camera_names import PREFIX
from vla_edge.export.command import main as export
from vla_edge.lerobot_data.command import main as data_command
from vla_edge.lerobot_data.reader import open_dataset
from vla_edge.lerobot_data.video import VideoEncoder, best_encoding
from vla_edge.policies.smolvla.policy import SmolVLAPolicy
from vla_edge.runtime.command import main as runtime
from vla_edge.training.command import main
from vla_edge.training.run_files import read_metrics

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.random_data import write_random_data
from tests.random_policy import RandomPolicy, write_random_policy
from tests.training.training_world import one_thread

one_thread()
PRETRAINED = "checkpoints/last/pretrained_model"
SMALL = {"resize_imgs_with_padding": [64, 64], "num_vlm_layers": 2, "tokenizer_max_length": 16}
TASK = "pick up the cube"


def chunk_of_bundle(checkpoint: Path, bundle: Path, cameras: tuple[str, ...], joints: int) -> np.ndarray:
    """What `vla-runtime infer` plans with the exported checkpoint for one random observation: [chunk, joints]."""
    assert export(["--checkpoint", str(checkpoint), "--out", str(bundle), "--threads", "1"]) == 0
    sizes = {camera.source: (camera.height, camera.width) for camera in open_bundle(bundle).manifest.cameras}
    random = np.random.default_rng(0)
    observation: dict[str, Any] = {"observation.state": random.normal(size=joints).astype(np.float32), "task": TASK}
    for name in cameras:
        shape = (*sizes[f"{PREFIX}{name}"], 3)
        observation[f"{PREFIX}{name}"] = random.integers(0, 256, shape, np.uint8)
    file = bundle.with_suffix(".npz")
    np.savez(file, **observation)
    words = ["--bundle", bundle, "--observation", file, "--out", bundle.with_suffix(".out.npz"), "--threads", 1]
    assert runtime(["infer", *map(str, words)]) == 0
    with np.load(bundle.with_suffix(".out.npz")) as found:
        actions = found["action"]
    assert actions.shape == (50, joints) and np.isfinite(actions).all()
    return actions


# ---- LeRobot's fine-tuning command


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy with the base's three cameras of 256×256."""
    folder = tmp_path_factory.mktemp("base") / "policy"
    cameras = ("camera1", "camera2", "camera3")
    write_random_policy(folder, RandomPolicy(cameras=cameras, image_width=256, image_height=256, config=SMALL))
    return folder


@pytest.mark.parametrize("cameras", [("camera1", "camera2"), ("top", "wrist")])
def test_lerobots_command_fine_tunes_the_three_camera_base_on_two_cameras_through_to_a_chunk(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], cameras: tuple[str, str]
) -> None:
    data = write_random_data(tmp_path / "grasp", cameras, (480, 640), 2, 6, "video", block=16)
    words = [f"--policy.path={base}", f"--dataset.root={data}", "--dataset.repo_id=grasp_dataset", "--batch_size=8"]
    words += ["--steps=3", "--policy.optimizer_lr=5e-5", f"--output_dir={tmp_path / 'run'}", "--policy.device=cpu"]
    if cameras[0] == "top":
        assert main(["fine-tune", *words]) == 2
        (told,) = capsys.readouterr().err.splitlines()
        assert told.endswith("say which is which, for example --camera camera1=top --camera camera2=wrist")
        named = {f"{PREFIX}top": f"{PREFIX}camera1", f"{PREFIX}wrist": f"{PREFIX}camera2"}
        words.append(f"--rename_map={json.dumps(named)}")
    assert main(["fine-tune", *words]) == 0
    assert (
        "observation.images.camera3 is not in the data: the policy trains without it, masked" in capsys.readouterr().out
    )
    written = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (written["batch_size"], written["steps"], written["optimizer"]["lr"]) == (8, 3, 5e-5)
    checkpoint = tmp_path / "run" / PRETRAINED
    config = SmolVLAPolicy.from_pretrained(checkpoint).config
    assert {item.name: item.shape for item in config.cameras} == {
        f"{PREFIX}camera1": (3, 480, 640),
        f"{PREFIX}camera2": (3, 480, 640),
        f"{PREFIX}camera3": (3, 256, 256),
    }
    chunk_of_bundle(checkpoint, tmp_path / "bundle", cameras, 6)


# ---- the four stages of Kuavo

STAGES = ("moving_grasp", "weighing", "placement", "sorting")
HEAD, WRIST, DEPTH = "observation.images.head_cam_h", "observation.images.wrist_cam_l", "observation.depth_h"
HEIGHT, WIDTH = 48, 64


def write_kuavo_v20(root: Path, seed: int, text: str) -> Path:
    """A v2.0 dataset as Kuavo's converter writes it: video [3, H, W], sixteen joints, depth as a column of numbers."""
    random = np.random.default_rng(seed)
    joints = {"dtype": "float32", "shape": [16], "names": {"state_names": [f"joint_{i}" for i in range(16)]}}
    picture = {"dtype": "video", "shape": [3, HEIGHT, WIDTH], "names": ["channels", "height", "width"]}
    depth = {"dtype": "uint16", "shape": [1, HEIGHT, WIDTH], "names": ["channels", "height", "width"]}
    kinds = {"timestamp": "float32", "frame_index": "int64", "episode_index": "int64", "index": "int64"}
    kinds |= {"task_index": "int64"}
    counters = {name: {"dtype": kind, "shape": [1], "names": None} for name, kind in kinds.items()}
    length, episodes = 6, 2
    rows = []
    for number in range(episodes):
        for key in (HEAD, WRIST):
            file = root / f"videos/chunk-000/{key}/episode_{number:06d}.mp4"
            file.parent.mkdir(parents=True, exist_ok=True)
            encoder = VideoEncoder(file, 10, best_encoding())
            for _ in range(length):
                encoder.add(random.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8))
            encoder.close()
        values = {
            name: list(random.normal(size=(length, 16)).astype(np.float32)) for name in ("observation.state", "action")
        }
        maps = random.integers(300, 4000, (length, 1, HEIGHT, WIDTH)).tolist()
        index = np.arange(length)
        table = {
            **values,
            DEPTH: pa.array(maps, pa.list_(pa.list_(pa.list_(pa.uint16())))),
            "timestamp": (index / 10).astype(np.float32),
            "frame_index": index,
            "episode_index": np.full(length, number),
            "index": index + number * length,
            "task_index": np.zeros(length, np.int64),
        }
        file = root / f"data/chunk-000/episode_{number:06d}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(table), file)
        rows.append(json.dumps({"episode_index": number, "tasks": [text], "length": length}))
    info = {
        "codebase_version": "v2.0",
        "robot_type": "kuavo4pro",
        "total_episodes": episodes,
        "total_frames": episodes * length,
        "total_tasks": 1,
        "total_videos": 2 * episodes,
        "total_chunks": 1,
        "chunks_size": 1000,
        "fps": 10,
        "splits": {"train": f"0:{episodes}"},
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": {
            "observation.state": joints,
            "action": joints,
            HEAD: picture,
            WRIST: picture,
            DEPTH: depth,
            **counters,
        },
    }
    (root / "meta").mkdir()
    (root / "meta/info.json").write_text(json.dumps(info))
    (root / "meta/episodes.jsonl").write_text("\n".join(rows) + "\n")
    (root / "meta/tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": text}) + "\n")
    return root


def test_the_four_kuavo_stages_go_from_v20_data_through_conversion_and_training_to_a_chunk(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    datasets = []
    for seed, name in enumerate(STAGES):
        source = write_kuavo_v20(tmp_path / "v20" / name, seed, f"do the {name}")
        assert data_command(["convert", str(source), str(tmp_path / name)]) == 0
        assert data_command(["verify", str(tmp_path / name)]) == 0
        with open_dataset(source) as before, open_dataset(tmp_path / name) as after:
            assert np.array_equal(before.column(DEPTH), after.column(DEPTH))
            assert DEPTH not in after.frame(0).values, "depth as numbers is not held in memory for every frame"
        datasets += ["--dataset", f"{name}={tmp_path / name}"]
    cameras = ("head_cam_h", "wrist_cam_l")
    write_random_policy(
        tmp_path / "policy", RandomPolicy(cameras=cameras, image_width=64, image_height=48, config=SMALL)
    )
    capsys.readouterr()
    words = ["stages", "kuavo", "--checkpoint", tmp_path / "policy", "--out", tmp_path / "run", "--device", "cpu"]
    few = [f"stages.{name}.epochs={2 / 3:.3f}" for name in STAGES]
    few += ["shared.batch_size=4", "validation_frames=4"]
    words += [*datasets, *(word for text in few for word in ("--set", text)), "--json"]
    assert main([str(word) for word in words]) == 0
    captured = capsys.readouterr()
    assert "moving_grasp: the schedule is scaled to the run: warm-up 1500 → 0 steps, decay 25000 → 2" in captured.err
    transfer = json.loads(captured.out.splitlines()[-1])
    assert transfer["stages"] == transfer["tasks"] == list(STAGES)
    assert all(np.isfinite(transfer["losses"][row][: row + 1]).all() for row in range(4))
    for number, name in enumerate(STAGES, 1):
        assert read_metrics(tmp_path / "run" / f"{number}_{name}")
    checkpoint = tmp_path / "run" / "4_sorting" / PRETRAINED
    config = SmolVLAPolicy.from_pretrained(checkpoint).config
    assert (config.action_dim, config.state_dim, config.n_action_steps, config.num_steps) == (16, 16, 8, 10)
    assert {item.shape for item in config.cameras} == {(3, HEIGHT, WIDTH)}
    chunk_of_bundle(checkpoint, tmp_path / "bundle", cameras, 16)
