# SPDX-License-Identifier: Apache-2.0
"""`vla-data merge | split | delete | renumber`: arguments and calls. Each makes a new dataset and leaves the old."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from vla_edge.command_line import answer, folder_to_write
from vla_edge.lerobot_data.data_commands import episode_bar
from vla_edge.lerobot_data.editing.episode_edits import delete, merge, parse_episodes, parse_shares, renumber, split
from vla_edge.lerobot_data.editing.rewrite import Progress
from vla_edge.lerobot_data.layout import Info
from vla_edge.lerobot_data.tolerance import add_tolerance


def add_merge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("datasets", type=Path, nargs="+", help="datasets, in the order in which they shall stand")
    _add_out(parser)


def add_split(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", type=Path, help="dataset: its folder, or a Hub id")
    parser.add_argument(
        "--part",
        action="append",
        required=True,
        metavar="NAME=SHARE",
        help="one part (repeat): a share of the episodes (train=0.8) or their numbers (val=8-9,12)",
    )
    _add_out(parser, "folder that gets a dataset of each NAME")


def add_delete(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", type=Path, help="dataset: its folder, or a Hub id")
    parser.add_argument("--episodes", required=True, metavar="LIST", help="episodes to leave out, as 0-9,12")
    _add_out(parser)


def add_renumber(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", type=Path, help="dataset whose episode numbers have gaps")
    _add_out(parser)


def _add_out(parser: argparse.ArgumentParser, help: str = "new dataset folder, must not exist") -> None:
    parser.add_argument("--out", type=folder_to_write, required=True, help=help)
    add_tolerance(parser)


def run_merge(arguments: argparse.Namespace) -> int:
    return _one(arguments.out, lambda bar: merge(arguments.datasets, arguments.out, bar, arguments.tolerance))


def run_split(arguments: argparse.Namespace) -> int:
    with episode_bar() as bar:
        infos = split(arguments.dataset, parse_shares(arguments.part), arguments.out, bar, arguments.tolerance)
    return _told({str(arguments.out / name): info for name, info in infos.items()})


def run_delete(arguments: argparse.Namespace) -> int:
    gone = parse_episodes(arguments.episodes)
    return _one(arguments.out, lambda bar: delete(arguments.dataset, gone, arguments.out, bar, arguments.tolerance))


def run_renumber(arguments: argparse.Namespace) -> int:
    return _one(arguments.out, lambda bar: renumber(arguments.dataset, arguments.out, bar, arguments.tolerance))


def _one(out: Path, make: Callable[[Progress], Info]) -> int:
    with episode_bar() as bar:
        info = make(bar)
    return _told({str(out): info})


def _told(infos: dict[str, Info]) -> int:
    for path, info in infos.items():
        print(f"{path}: {info.total_episodes} episodes, {info.total_frames} frames, verified")
    rows = [{"target": path, "episodes": i.total_episodes, "frames": i.total_frames} for path, i in infos.items()]
    answer({"datasets": rows})
    return 0
