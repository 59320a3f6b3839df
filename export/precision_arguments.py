# SPDX-License-Identifier: Apache-2.0
"""The flags of `export-engines` that are about precision, and the request they make."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from vla_edge.camera_names import camera_pairs
from vla_edge.command_line import between, count, file_to_write
from vla_edge.engines.engine import backends
from vla_edge.errors import ConfigError

if TYPE_CHECKING:
    from vla_edge.export.precision import PrecisionRequest

PRECISIONS = ("fp32", "fp16", "int8", "auto")


def add_precision_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    group = parser.add_argument_group("precision")
    group.add_argument(
        "--bundle", type=Path, metavar="BUNDLE", help="float32 bundle to start from in place of a checkpoint"
    )
    group.add_argument(
        "--backend",
        choices=[name for name, backend in backends().items() if backend.dialect],
        default="ort",
        help="what the graphs are prepared for (default: ort)",
    )
    group.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="type of the matrices; auto: int8 where it holds the bound (default: fp32)",
    )
    group.add_argument(
        "--synthetic", action="store_true", help="measure on synthetic observations: for a policy with random weights"
    )
    group.add_argument(
        "--joint-error",
        type=between(1e-9, 1),
        default=0.005,
        metavar="SHARE",
        help="bound: 95th percentile of the action error, share of a joint's range (default: 0.005)",
    )
    group.add_argument(
        "--cosine",
        type=between(1e-9, 1),
        default=0.999,
        metavar="C",
        help="bound: cosine of the chunks with float32's (default: 0.999)",
    )
    group.add_argument(
        "--ranges-file", type=file_to_write, metavar="NPZ", help="keep the ranges there; an interrupted run goes on"
    )
    group.add_argument("--frames", type=count, default=32, help="observations for ranges (default: 32)")
    group.add_argument("--held-out", type=count, default=8, help="observations for the action error (default: 8)")


def request_from_arguments(arguments: argparse.Namespace) -> PrecisionRequest:
    """ConfigError: a flag's value is out of range, or nothing to measure on was given."""
    from vla_edge.calibration.precision.action_error import ActionErrorBound
    from vla_edge.export.precision import PrecisionRequest

    if arguments.dataset is None and not arguments.synthetic:
        raise ConfigError(
            f"--precision {arguments.precision} is measured on recorded observations: give --dataset DATASET, or "
            "--synthetic for random weights"
        )
    return PrecisionRequest(
        precision=arguments.precision,
        backend=arguments.backend,
        data=arguments.dataset,
        cameras=camera_pairs(arguments.camera),
        tolerance_s=arguments.tolerance,
        bound=ActionErrorBound(arguments.joint_error, arguments.cosine),
        ranges_file=arguments.ranges_file,
        frames=arguments.frames,
        held_out=arguments.held_out,
        threads=arguments.threads,
    )
