# SPDX-License-Identifier: Apache-2.0
"""`vla-data convert | verify | compare | stats | tasks | info` on LeRobot datasets: arguments and calls."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from vla_edge.camera_names import short_name
from vla_edge.command_line import answer, count, folder_to_write, positive, whole
from vla_edge.errors import CheckFailed, DatasetError, UsageError
from vla_edge.hub import is_id, local_folder
from vla_edge.lerobot_data import layout
from vla_edge.lerobot_data.compare_data import compare_datasets
from vla_edge.lerobot_data.editing.convert import convert_dataset
from vla_edge.lerobot_data.editing.episode_edits import add_episodes
from vla_edge.lerobot_data.editing.rewrite import FileSizes
from vla_edge.lerobot_data.reader import Dataset, open_dataset
from vla_edge.lerobot_data.recompute import largest_difference, recompute_stats
from vla_edge.lerobot_data.tables import stats_to_json
from vla_edge.lerobot_data.task_texts import add_task, assign_task, load_counter, rename_task, task_uses
from vla_edge.lerobot_data.tolerance import add_tolerance
from vla_edge.lerobot_data.verification.verify import verify_dataset


def add_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help="dataset of v2.0 or v2.1: its folder, or a Hub id")
    parser.add_argument("target", type=folder_to_write, help="new dataset folder, must not exist")
    add_tolerance(parser)
    sizes = parser.add_argument_group("file sizes")
    sizes.add_argument("--data-file-mb", type=positive, default=layout.DATA_FILE_MB, help="size of a data file")
    sizes.add_argument("--video-file-mb", type=positive, default=layout.VIDEO_FILE_MB, help="size of a video file")


def add_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", type=Path, help="dataset: its folder, or a Hub id")
    add_tolerance(parser)


def add_info(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", type=Path, help="dataset: its folder, or a Hub id")


def add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", type=Path, help="dataset: its folder, or a Hub id")
    parser.add_argument("b", type=Path, help="dataset that should hold the same")
    parser.add_argument("--samples", type=whole, default=3, help="pictures compared per episode and camera")
    add_tolerance(parser)


def add_stats(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", type=Path, help="dataset: its folder, or a Hub id")
    parser.add_argument("--write", action="store_true", help="replace the stored statistics")
    add_tolerance(parser)


def add_tasks(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", type=Path, help="dataset: its folder, or a Hub id")
    change = parser.add_argument_group("change a text").add_mutually_exclusive_group()
    change.add_argument("--add", metavar="TEXT", help="add a task text")
    change.add_argument("--rename", nargs=2, metavar=("OLD", "NEW"), help="change a task text")
    change.add_argument("--assign", metavar="TEXT", help="make this the task of --episodes, of all without it")
    add_episodes(parser, "for --assign, as 0-9,12")
    tokens = parser.add_argument_group("count tokens")
    tokens.add_argument("--tokenizer", type=Path, help="tokenizer.json, bundle or checkpoint folder to count with")
    tokens.add_argument("--limit", type=count, help="token limit (default: the checkpoint's, else 48)")


def run_convert(arguments: argparse.Namespace) -> int:
    sizes = FileSizes(arguments.data_file_mb, arguments.video_file_mb)
    source = local_folder(arguments.source, "dataset")
    with episode_bar() as advance:
        info = convert_dataset(source, arguments.target, sizes, advance, arguments.tolerance)
    print(f"{arguments.target}: {info.version}, {info.total_episodes} episodes, {info.total_frames} frames, verified")
    answer({"target": str(arguments.target), "episodes": info.total_episodes, "frames": info.total_frames})
    return 0


def run_verify(arguments: argparse.Namespace) -> int:
    report = verify_dataset(local_folder(arguments.dataset, "dataset"), tolerance_s=arguments.tolerance)
    for check in report.checks:
        print(f"{check.verdict:<8}{check.name}" + (f": {check.needs}" if check.needs else ""))
        for problem in check.problems or ():
            print(f"        {problem}")
    answer(report.as_json())
    open_ = [check.name for check in report.checks if check.verdict not in ("passed", "untidy")]
    if not report.passed:
        raise CheckFailed(
            f"{arguments.dataset}: {len(open_)} of {len(report.checks)} checks, first {open_[0]}; see above"
        )
    return 0


def run_compare(arguments: argparse.Namespace) -> int:
    a, b = (local_folder(path, "dataset") for path in (arguments.a, arguments.b))
    differences = compare_datasets(a, b, arguments.samples, tolerance_s=arguments.tolerance)
    for difference in differences:
        print(difference)
    if not differences:
        print("equal")
    answer({"equal": not differences, "differences": differences})
    if differences:
        raise CheckFailed(f"{len(differences)} differences, first {differences[0]}")
    return 0


def run_stats(arguments: argparse.Namespace) -> int:
    root = _own_folder(arguments.dataset) if arguments.write else local_folder(arguments.dataset, "dataset")
    with episode_bar() as advance:
        computed, stored = recompute_stats(root, advance, arguments.write, arguments.tolerance)
    differences = {key: largest_difference(key, computed, stored) for key in computed}
    for key, difference in differences.items():
        print(f"{key:<32} stored differs by {difference:.2g} of the range")
    if arguments.write:
        print("the computed statistics were written")
    answer({"stats": stats_to_json(computed), "difference": differences, "written": arguments.write})
    return 0


def run_tasks(arguments: argparse.Namespace) -> int:
    counter = load_counter(arguments.tokenizer, arguments.limit) if arguments.tokenizer else None
    changed = (arguments.add, arguments.rename, arguments.assign) != (None, None, None)
    root = _own_folder(arguments.dataset) if changed else local_folder(arguments.dataset, "dataset")
    if arguments.add is not None:
        print(f"task {add_task(root, arguments.add)} added")
    if arguments.rename is not None:
        print(f"task {rename_task(root, *arguments.rename)} renamed")
    if arguments.assign is not None:
        print(f"task {assign_task(root, arguments.assign, arguments.episodes)} assigned")
    elif arguments.episodes:
        raise UsageError("--episodes says where --assign TEXT goes; give both")
    rows = []
    for use in task_uses(root, counter):
        too_long = counter is not None and use.tokens is not None and use.tokens > counter.limit
        tokens = "tokens not counted" if counter is None else f"{use.tokens} of {counter.limit} tokens"
        mark = "  TOO LONG: the policy sees a truncated instruction" if too_long else ""
        print(f"{use.index:>3}  {use.episodes} episodes, {use.frames} frames, {tokens}  {use.text!r}{mark}")
        rows.append({**asdict(use), "too_long": too_long})
    answer({"tasks": rows, "limit": counter.limit if counter else None})
    long = [str(row["text"]) for row in rows if row["too_long"]]
    if long:
        raise CheckFailed(f"{len(long)} task texts are too long, first {long[0][:60]!r}; shorten with --rename OLD NEW")
    return 0


def _own_folder(path: Path) -> Path:
    """A dataset that may be changed in place: a folder that the user named, not a cache's."""
    if not path.exists() and is_id(str(path)):
        raise DatasetError(
            f"{path} is a Hub id, and a cache is not changed in place; `hf download --repo-type dataset {path} "
            f"--local-dir {path.name}` and change that folder"
        )
    return path


def run_info(arguments: argparse.Namespace) -> int:
    with open_dataset(arguments.dataset) as dataset:
        summary = summary_of(dataset)
    print("\n".join(summary_lines(summary)))
    answer(summary)
    return 0


def summary_of(dataset: Dataset) -> dict[str, Any]:
    """What a dataset holds, as JSON. cameras: height and width in pixels and codec; features: type, shape and names of
    all other columns."""
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
            key: {"dtype": feature.dtype, "shape": list(feature.shape), "names": layout.flat_names(feature.names)}
            for key, feature in info.features.items()
            if not feature.is_camera and key not in layout.INDEX_FEATURES
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


@contextmanager
def episode_bar() -> Iterator[Callable[[int, int], None]]:
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("episodes", total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total)
