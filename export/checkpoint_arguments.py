# SPDX-License-Identifier: Apache-2.0
"""The flags of `export-engines` that say what a checkpoint does not, and the export they ask for."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from vla_edge.bundle import MAX_FPS, MIN_FPS
from vla_edge.camera_names import add_camera_pairs, camera_pairs
from vla_edge.command_line import Number, count
from vla_edge.errors import ConfigError
from vla_edge.lerobot_data.tolerance import add_tolerance

UNKNOWN = "unknown"
OF_A_CHECKPOINT: dict[str, object] = {
    "revision": "",
    "vlm": None,
    "base": None,
    "outputs_are_joint_values": False,
    "take_empty_cameras": False,
    "joint_units": UNKNOWN,
    "fps": None,
    "step_sizes": (),
    "chunk_size": None,
}
"""Fields of the request that no bundle can be given afterwards, with their value where the flag is left out."""
_rate = Number(
    float, lambda value: MIN_FPS <= value <= MAX_FPS, f"a number from {MIN_FPS:g} to {MAX_FPS:g}, or {UNKNOWN}", "N"
)


def add_checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    described = parser.add_argument_group("what the checkpoint does not say")
    described.add_argument(
        "--revision",
        default="",
        metavar="TEXT",
        help="branch, tag or commit of a checkpoint on the Hub (default: main)",
    )
    described.add_argument(
        "--vlm",
        type=Path,
        metavar="DIR",
        help="folder with the backbone's config.json and tokenizer (default: where the checkpoint says)",
    )
    described.add_argument(
        "--base", type=Path, metavar="DIR", help="policy that a LoRA folder adapts (default: where the adapter says)"
    )
    described.add_argument(
        "--outputs-are-joint-values",
        action="store_true",
        help="the actions have no statistics and none are needed: what the network puts out goes to the arm",
    )
    described.add_argument(
        "--dataset",
        type=Path,
        metavar="DATASET",
        help="LeRobot dataset, its folder or a Hub id: its frames are compared too, its joint names and rate taken",
    )
    add_tolerance(described)
    add_camera_pairs(described)
    described.add_argument(
        "--take-empty-cameras",
        action="store_true",
        help="empty_camera_0 and on, which `empty_cameras` of config.json adds, may be given a picture, as in LeRobot; "
        "each costs the prefix a camera's time, given or not (default: always empty)",
    )
    described.add_argument(
        "--joint-units",
        choices=("degrees", "range_m100_100", "unknown"),
        default="unknown",
        help="unit of the policy's joint values",
    )
    described.add_argument(
        "--fps",
        type=_fps,
        metavar="N",
        help="actions a second in the policy's data, or `unknown` (default: the dataset's, unknown without one)",
    )
    described.add_argument(
        "--step-sizes",
        type=_step_sizes,
        default=(),
        metavar="S1,S2,…",
        help="flow steps that are not equally long, as shares of the way from noise to actions: --flow-steps of so "
        "many takes them (default: equal steps)",
    )
    described.add_argument(
        "--chunk-size",
        type=count,
        metavar="N",
        help="compute only the first N actions of SmolVLA's chunk: they stay the same, because an action depends on no "
        "later one, and a flow step takes less time on a CPU (default: the policy's chunk_size)",
    )


def check_checkpoint_arguments(arguments: argparse.Namespace) -> None:
    """ConfigError: not one of a checkpoint and a bundle, or what a bundle cannot be given afterwards."""
    if bool(arguments.checkpoint) == bool(arguments.bundle):
        raise ConfigError(
            "give either --checkpoint DIR to export, --bundle BUNDLE to change the precision of, or --inspect BUNDLE"
        )
    given = [name for name, left_out in OF_A_CHECKPOINT.items() if getattr(arguments, name) != left_out]
    if arguments.bundle and given:
        raise ConfigError(
            f"--{given[0].replace('_', '-')} is for a checkpoint; give --checkpoint DIR instead of --bundle, or leave "
            "it out"
        )


def _step_sizes(text: str) -> tuple[float, ...]:
    """`0.4,0.3,0.2,0.1`: shares above 0 that make 1."""
    try:
        sizes = tuple(float(part) for part in text.split(","))
    except ValueError:
        sizes = ()
    if not sizes or not all(size > 0 for size in sizes) or not abs(sum(sizes) - 1) < 1e-3:
        raise argparse.ArgumentTypeError(f"{text!r}: give shares above 0 that make 1 together, such as 0.4,0.3,0.2,0.1")
    return sizes


def _fps(text: str) -> float | str:
    """A rate, or the word `unknown`."""
    return text if text == UNKNOWN else _rate(text)


def export_from_arguments(arguments: argparse.Namespace, out: Path, tell: Callable[[str], None]) -> None:
    """Export the checkpoint to the new bundle `out`; `tell` hears what begins."""
    from vla_edge.export.assemble import ExportRequest, export_bundle
    from vla_edge.export.proof_observations import Recording

    recording = Recording(arguments.dataset, camera_pairs(arguments.camera), arguments.tolerance)
    request = ExportRequest(
        checkpoint=arguments.checkpoint,
        out=out,
        recording=recording if arguments.dataset else None,
        threads=arguments.threads,
        **{name: getattr(arguments, name) for name in OF_A_CHECKPOINT},
    )
    export_bundle(request, tell)
