# SPDX-License-Identifier: Apache-2.0
"""What can be typed after `vla-train evaluate | compare | cls-report`. Nothing here loads torch, so that help and a
typing error come at once."""

from __future__ import annotations

import argparse
from pathlib import Path

from vla_edge.command_line import between, count, file_to_write, folder_to_write, threads, whole
from vla_edge.lerobot_data.editing.episode_edits import add_episodes
from vla_edge.lerobot_data.tolerance import add_tolerance
from vla_edge.runtime.inference.session import add_flow_steps_argument


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("policy", type=Path, help="checkpoint, bundle, or saved predictions (.npz)")
    parser.add_argument("--out", type=file_to_write, metavar="NPZ", help="keep the predictions for `vla-train compare`")
    add_scope(parser)


def add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("policies", nargs="+", type=Path, help="checkpoints, bundles, predictions (.npz)")
    parser.add_argument("--png", type=file_to_write, help="three panels: latency, parameters, error")
    parser.add_argument("--markdown", type=file_to_write, help="the table, with rows of the trials on the robot")
    parser.add_argument(
        "--trials",
        action="append",
        default=[],
        metavar="NUMBER=JSON",
        help="trials of the NUMBERth policy on the robot, as `vla-runtime report RECORD --trials JSON` wrote them",
    )
    parser.add_argument("--timed", type=count, default=20, help="predictions to time")
    add_scope(parser)


def add_cls_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("policy", type=Path, help="checkpoint with a trained CLS head")
    parser.add_argument("--dataset", required=True, metavar="DIR", help="LeRobot dataset: its folder, or a Hub id")
    add_episodes(parser, "episodes to look at, e.g. 0-9,12 (default: all)")
    add_tolerance(parser)
    parser.add_argument("--stride", type=count, default=1, help="every n-th frame")
    parser.add_argument("--near", type=count, default=3, help="frames apart that still are the same scene")
    parser.add_argument(
        "--threshold",
        type=between(-1, 1),
        help="similarity above which the scene is stable (default: the checkpoint's); hit rate too low: lower it",
    )
    parser.add_argument("--out", type=folder_to_write, help="folder for similarity.csv, cls.json and similarity.png")


def add_scope(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataset", metavar="DIR", help="LeRobot dataset: its folder, or a Hub id")
    add_episodes(parser, "episodes to evaluate, e.g. 0-9,12 (default: all)")
    parser.add_argument("--run", type=Path, help="take (its last) dataset and held-out episodes from this run")
    add_tolerance(parser)
    parser.add_argument("--stride", type=count, default=5, help="every n-th frame")
    parser.add_argument("--seed", type=whole, default=0, help="seed of the noise")
    parser.add_argument("--draws", type=count, default=1, help="noise draws per frame")
    add_flow_steps_argument(parser)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where checkpoints run")
    parser.add_argument(
        "--threads", type=threads, default=0, help="CPU threads of a bundle (default: all physical cores)"
    )
