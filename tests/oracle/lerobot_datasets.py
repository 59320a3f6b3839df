# SPDX-License-Identifier: Apache-2.0
"""What `lerobot_side.py` is asked about datasets: reading one as training does, recording one, LeRobot's edit tools."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def opened(root: str, **options: Any) -> Any:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    return LeRobotDataset("local/" + Path(root).name, root=root, video_backend="pyav", **options)


def read(root: str, out: str, tolerance_s: float = 1e-4) -> None:
    """Every frame's numbers, task and pictures (uint8), the statistics, and each episode's row without its places."""
    dataset = opened(root, tolerance_s=tolerance_s)
    arrays: dict[str, Any] = {}
    samples = [dataset[i] for i in range(len(dataset))]
    for key, value in samples[0].items():
        if isinstance(value, str):
            arrays[f"frames/{key}"] = np.array([sample[key] for sample in samples])
        elif hasattr(value, "numpy"):
            column = np.stack([sample[key].numpy() for sample in samples])
            picture = key in dataset.meta.camera_keys
            arrays[f"frames/{key}"] = (column * 255).round().astype(np.uint8) if picture else column
    for key, entry in dataset.meta.stats.items():
        for name, value in entry.items():
            arrays[f"stats/{key}/{name}"] = np.asarray(value)
    tasks = dataset.meta.tasks
    arrays["tasks"] = np.array(json.dumps(dict(zip(map(str, tasks.index), map(int, tasks["task_index"])))))
    rows = []
    for i in range(dataset.meta.total_episodes):
        row = dataset.meta.episodes[i]
        kept = ("episode_index", "dataset_from_index", "dataset_to_index", "length", "tasks")
        rows.append({key: row[key] for key in kept})
    arrays["episodes"] = np.array(json.dumps(rows, default=int))
    np.savez(out, **arrays)


def delete(root: str, episodes: list[int], out: str) -> None:
    from lerobot.datasets.dataset_tools import delete_episodes

    delete_episodes(opened(root), episodes, output_dir=out, repo_id="local/kept")


def split(root: str, shares: dict[str, Any], out: str) -> None:
    from lerobot.datasets.dataset_tools import split_dataset

    split_dataset(opened(root), shares, output_dir=out)


def merge(roots: list[str], out: str) -> None:
    from lerobot.datasets.dataset_tools import merge_datasets

    merge_datasets([opened(root) for root in roots], "local/merged", output_dir=out)


def assign(root: str, text: str, episodes: list[int]) -> None:
    from lerobot.datasets.dataset_tools import modify_tasks

    modify_tasks(opened(root), episode_tasks=dict.fromkeys(episodes, text))


def record(out: str, values: str, fps: int, features: dict[str, Any], lengths: list[int], tasks: list[str]) -> None:
    """Record what `values` (.npz, feature → [frames, ...]) holds, episode by episode."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    for feature in features.values():
        feature["shape"] = tuple(feature["shape"])
    columns = dict(np.load(values))
    dataset = LeRobotDataset.create("local/recorded", fps, features, root=out, robot_type="koch", use_videos=True)
    frame = 0
    for length, task in zip(lengths, tasks):
        for _ in range(length):
            dataset.add_frame({key: column[frame] for key, column in columns.items()} | {"task": task})
            frame += 1
        dataset.save_episode()
    getattr(dataset, "finalize", lambda: None)()


def asked(work: Callable[..., None]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """`work` with a request's fields as its arguments."""

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        work(**{name: value for name, value in request.items() if name != "do"})
        return {}

    return answer


DO = {f"dataset {work.__name__}": asked(work) for work in (read, delete, split, merge, assign, record)}
