# SPDX-License-Identifier: Apache-2.0
"""What a dataset holds, as `vla-data info` shows it: counts, cameras, features, tasks, what was left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from vla_edge.camera_names import short_name
from vla_edge.lerobot_data.layout import INDEX_FEATURES, flat_names
from vla_edge.lerobot_data.reader import Dataset


def summary_of(dataset: Dataset) -> dict[str, Any]:
    """As JSON. cameras: height and width in pixels and codec; features: type, shape and names of all other columns."""
    info = dataset.info
    lengths = [episode.length for episode in dataset.episodes]
    used = dataset.column("task_index")
    return {
        "dataset": str(dataset.root),
        "version": info.version,
        "robot_type": info.robot_type,
        "fps": info.fps,
        "episodes": len(lengths),
        "frames": len(dataset),
        "seconds": len(dataset) / info.fps,
        "shortest_frames": min(lengths),
        "longest_frames": max(lengths),
        "cameras": {
            short_name(key): {
                "height": info.features[key].shape[0],
                "width": info.features[key].shape[1],
                "stored": _coding(info.features[key].dtype, info.features[key].video_info or {}),
            }
            for key in info.camera_keys
        },
        "features": {
            key: {"dtype": feature.dtype, "shape": list(feature.shape), "names": flat_names(feature.names)}
            for key, feature in info.features.items()
            if not feature.is_camera and key not in INDEX_FEATURES
        },
        "left_out": dict(info.left_out),
        "tasks": {text: int(np.sum(used == number)) for number, text in dataset.tasks.items()},
    }


def _coding(dtype: str, facts: Mapping[str, Any]) -> str:
    return f"video {facts.get('video.codec') or facts.get('video_codec') or ''}".strip() if dtype == "video" else dtype


def summary_lines(summary: Mapping[str, Any]) -> list[str]:
    """For a person, one fact a line."""
    lines = [
        f"{summary['dataset']}: {summary['version']}, robot {summary['robot_type']}, {summary['fps']} frames a second",
        f"{summary['episodes']} episodes, {summary['frames']} frames, {summary['seconds']:.0f} s; an episode has "
        f"{summary['shortest_frames']} to {summary['longest_frames']} frames",
    ]
    for name, camera in summary["cameras"].items():
        lines.append(f"camera   {name:<24} {camera['width']}x{camera['height']}  {camera['stored']}")
    for key, feature in summary["features"].items():
        names = ", ".join(feature["names"])
        lines.append(f"feature  {key:<24} {feature['dtype']} {feature['shape']}" + (f"  {names}" if names else ""))
    lines += [f"left out {key:<24} {why}" for key, why in summary["left_out"].items()]
    lines += [f"task     {text!r}: {frames} frames" for text, frames in summary["tasks"].items()]
    return lines
