# SPDX-License-Identifier: Apache-2.0
"""How far a picture's time in a video may be from its frame's: LeRobot's `tolerance_s`, `--tolerance` here."""

from __future__ import annotations

import argparse
from typing import Any

from vla_edge.command_line import positive

TOLERANCE_S = 1e-4
"""A frame belongs to a time when they differ by less (LeRobot's `tolerance_s`)."""


def add_tolerance(parser: argparse.ArgumentParser | Any) -> None:
    """Declare the flag, beside a `--dataset` whose pictures are read."""
    parser.add_argument(
        "--tolerance",
        type=positive,
        default=TOLERANCE_S,
        metavar="SECONDS",
        help=f"how far times may be from frame / fps (default: {TOLERANCE_S:g}; LeRobot: tolerance_s)",
    )
