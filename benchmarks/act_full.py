# SPDX-License-Identifier: Apache-2.0
"""ACT at full size, two cameras, random weights: float32 and INT8 on ONNX Runtime beside torch, in one interleaved run.

    python -m vla_edge.benchmarks.act_full [--vision-backbone dinov2_vits14] [--against-lerobot]

Its ceiling: a plan every 33.3 ms, so that a new chunk stands at each tick of 30 Hz. LeRobot's own sizes but for the
pictures, 480×640 for a ResNet and 476×644 for a DINOv2. Writes `OUT/act-full.{json,md,png}`, with a DINOv2
`act-full-DINOV2`. What lies in the work folder already is used again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from vla_edge.benchmarks.bench_report import markdown, write_report
from vla_edge.benchmarks.full import BOUND
from vla_edge.benchmarks.host import REPOSITORY
from vla_edge.benchmarks.measure import Rounds, measure
from vla_edge.benchmarks.subject import SubjectSpec
from vla_edge.command_line import CommandParser, count, run_command, threads
from vla_edge.export.assemble import ExportRequest, export_bundle
from vla_edge.export.precision import PrecisionRequest, requantise
from vla_edge.files import write_json
from vla_edge.policies.act.dinov2 import SIZES
from vla_edge.policies.act.resnet import DEPTHS
from vla_edge.policies.families import Beginning, scratch_of
from vla_edge.policies.features import ACTION, STATE, Feature

JOINTS, CAMERAS, USUAL = 6, ("front", "wrist"), "resnet18"


def write_act(folder: Path, vision_backbone: str, **fields: Any) -> None:
    """A random ACT of LeRobot's default sizes, but for `fields`."""
    size = (476, 644) if vision_backbone in SIZES else (480, 640)
    cameras = tuple(Feature(f"observation.images.{name}", "VISUAL", (3, *size)) for name in CAMERAS)
    ones = {"mean": np.zeros(JOINTS, np.float32), "std": np.ones(JOINTS, np.float32)}
    inputs, outputs = (Feature(STATE, "STATE", (JOINTS,)), *cameras), (Feature(ACTION, "ACTION", (JOINTS,)),)
    chosen = {"vision_backbone": vision_backbone, **fields}
    beginning = Beginning(inputs, outputs, {STATE: ones, ACTION: ones}, chosen, "", 0)
    scratch_of("act").make(beginning).save_pretrained(folder)


def prepare(
    work: Path, vision_backbone: str, lerobot: bool, cores: int, tell: Callable[[str], None]
) -> list[SubjectSpec]:
    """Checkpoint and bundles in `work`, made where they are missing; what is to be measured."""
    work.mkdir(parents=True, exist_ok=True)
    checkpoint, float32, int8 = (work / f"{vision_backbone}-{name}" for name in ("checkpoint", "float32", "int8"))
    if not checkpoint.exists():
        tell("make a policy of full size")
        write_act(checkpoint, vision_backbone)
    if not float32.exists():
        export_bundle(ExportRequest(checkpoint, float32, threads=cores), tell)
    if not int8.exists():
        requantise(float32, int8, PrecisionRequest("int8", bound=BOUND, frames=2, held_out=2, threads=cores), tell)
    specs = [SubjectSpec("torch eager", "torch", checkpoint, "torch", cores, float32)]
    specs += [SubjectSpec("lerobot", "lerobot", checkpoint, "torch", cores, float32)] * lerobot
    bundles = (("float32 ort", float32), ("int8 ort", int8))
    return [*specs, *(SubjectSpec(name, "bundle", path, "ort", cores, float32) for name, path in bundles)]


def main(argv: Sequence[str]) -> int:
    parser = CommandParser(prog="python -m vla_edge.benchmarks.act_full", description="ACT at full size")
    parser.add_argument("--vision-backbone", choices=(*DEPTHS, *SIZES), default=USUAL, help="what looks at a picture")
    parser.add_argument(
        "--against-lerobot", action="store_true", help="LeRobot's own ACT too, where it is installed (ResNets only)"
    )
    parser.add_argument(
        "--work", type=Path, default=REPOSITORY / "out" / "bench-act", metavar="DIR", help="what is made once"
    )
    parser.add_argument(
        "--out", type=Path, default=REPOSITORY / "benchmarks" / "results", metavar="DIR", help="folder of the results"
    )
    parser.add_argument("--rounds", type=count, default=6, help="measured rounds, at least 5")
    parser.add_argument("--threads", type=threads, default=2, help="CPU threads of every subject")
    asked = parser.parse_args(argv)
    console = Console()
    with console.status("starting") as status:
        specs = prepare(asked.work, asked.vision_backbone, asked.against_lerobot, asked.threads, status.update)
        result = measure(specs, Rounds(max(5, asked.rounds), warm_up=1), asked.threads, status.update)
    name = "act-full" if asked.vision_backbone == USUAL else f"act-full-{asked.vision_backbone}"
    asked.out.mkdir(parents=True, exist_ok=True)
    write_json(asked.out / f"{name}.json", result)
    write_report(result, asked.out, name)
    for line in markdown(result):
        console.print(line, markup=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
