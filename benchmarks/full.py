# SPDX-License-Identifier: Apache-2.0
"""`make bench`: the full-size network, two cameras, ten steps, against torch eager float32 in one interleaved run.

    python -m vla_edge.benchmarks.full [--family smolvla | act] [--against-lerobot] [--work DIR] [--rounds N]

Makes a policy of SmolVLA's size with random weights (or LeRobot's default ACT, whose ceiling is a plan every 33.3 ms),
its float32 bundle and an INT8 bundle for each CPU backend, measures them beside torch, and writes
`benchmarks/results/full.{json,md,png}` (`act-full`). What lies in the work folder already is used again. Random weights
make SmolVLA's action error harder than a trained policy's: the flow is chaotic and no error is forgotten.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from vla_edge.benchmarks.bench_report import add_against_lerobot, backends_here, bench_parser, markdown, write_report
from vla_edge.benchmarks.host import REPOSITORY
from vla_edge.benchmarks.measure import Rounds, measure
from vla_edge.benchmarks.subject import SubjectSpec
from vla_edge.calibration.precision.action_error import ActionErrorBound
from vla_edge.command_line import count, folder_to_write, run_command
from vla_edge.errors import CheckFailed
from vla_edge.export.assemble import ExportRequest, export_bundle
from vla_edge.export.precision import PrecisionRequest, requantise
from vla_edge.files import write_json
from vla_edge.policies.families import Beginning, new_policy
from vla_edge.policies.features import ACTION, STATE, Feature

BARS = {"fresh_float32": 1.0, "fresh": 3.2, "cached": 14.0, "one_camera": 0.30}
"""Least ratios against torch eager; `one_camera` is the share of a fresh inference that is saved."""

MEMORY_BAR = 0.5
"""Most peak memory of INT8 on ONNX Runtime, as a share of what torch keeps resident."""

COSINE_BAR = 0.998
VISION_BAR = 0.65
"""The baseline must itself be good: least share of the float32 ceiling that torch reaches on vision."""

BOUND = ActionErrorBound(joint_p95=0.05, cosine=COSINE_BAR)


def make_smolvla(folder: Path) -> None:
    # LeRobot's environment has another package of this name.
    from tests.random_policy import RandomPolicy, write_random_policy

    write_random_policy(folder, RandomPolicy(size="full", dtype="bfloat16"))


def make_act(folder: Path, **fields: Any) -> None:
    """A random ACT of LeRobot's default sizes, but for `fields`."""
    ones = {"mean": np.zeros(6, np.float32), "std": np.ones(6, np.float32)}
    cameras = tuple(Feature(f"observation.images.{name}", "VISUAL", (3, 480, 640)) for name in ("front", "wrist"))
    inputs, outputs = (Feature(STATE, "STATE", (6,)), *cameras), (Feature(ACTION, "ACTION", (6,)),)
    new_policy("act", Beginning(inputs, outputs, {STATE: ones, ACTION: ones}, fields, "", 0)).save_pretrained(folder)


@dataclass(frozen=True, slots=True)
class Family:
    """name: of the results. make: writes the checkpoint. backends: of INT8 bundles (OpenVINO runs no convolution on
    integers as it is asked to). judge: what is to be reached, None: nothing but a plan every 33.3 ms, which every
    result tells."""

    name: str
    make: Callable[[Path], None]
    backends: tuple[str, ...]
    judge: Callable[[dict[str, Any]], dict[str, Any]] | None = None


def prepare(work: Path, family: Family, lerobot: bool, threads: int, tell: Callable[[str], None]) -> list[SubjectSpec]:
    """Checkpoint and bundles in `work`, made where they are missing; what is to be measured."""
    work.mkdir(parents=True, exist_ok=True)
    checkpoint, float32 = work / "checkpoint", work / "float32"
    if not checkpoint.exists():
        tell("make a policy of full size")
        family.make(checkpoint)
    if not float32.exists():
        export_bundle(ExportRequest(checkpoint=checkpoint, out=float32, threads=threads), tell)
    specs = [
        SubjectSpec("torch eager", "torch", checkpoint, "torch", threads, float32),
        *[SubjectSpec("lerobot", "lerobot", checkpoint, "torch", threads, float32)] * lerobot,
        SubjectSpec("float32 ort", "bundle", float32, "ort", threads, float32),
    ]
    for backend in backends_here(family.backends, threads, tell):
        out = work / f"int8-{backend}"
        if not out.exists():
            request = PrecisionRequest(
                "int8", backend, bound=BOUND, frames=2, held_out=2, threads=threads, ranges_file=work / "ranges.npz"
            )
            requantise(float32, out, request, tell)
        specs.append(SubjectSpec(f"int8 {backend}", "bundle", out, backend, threads, float32))
    return specs


def headline(result: dict[str, Any]) -> dict[str, Any]:
    """ratio, error and memory of the table, and for each bar whether it was reached."""
    ratios, errors, subjects = result["ratios"], result["errors"], result["subjects"]
    int8 = [name for name in ratios if name.startswith("int8")]
    best = {case: max(int8, key=lambda name, case=case: ratios[name]["wall"][case]) for case in ("fresh", "cached")}  # type: ignore[misc]
    torch = subjects["torch eager"]
    ratio = {
        "fresh_float32": ratios["float32 ort"]["wall"]["fresh"],
        "fresh": ratios[best["fresh"]]["wall"]["fresh"],
        "cached": ratios[best["cached"]]["wall"]["cached"],
        "one_camera": ratios[best["fresh"]]["wall"]["one_camera_saved"],
    }
    error = {name.replace(" ", "_"): found for name, found in errors.items()}
    memory = {name.replace(" ", "_"): subject["peak_rss_mb"] for name, subject in subjects.items()}
    # Torch's peak is while it loads; what it keeps afterwards is the stricter yardstick.
    share = round(subjects["int8 ort"]["peak_rss_mb"] / torch["resident_mb"], 4) if "int8 ort" in subjects else None
    vision_macs = subjects["float32 ort"]["work"]["vision"]["multiply_adds"]
    fastest = 2e-6 * vision_macs / torch["cases"]["fresh"]["graphs_ms"]["vision"]["p50"]
    baseline = {
        "vision_gops": round(fastest, 1),
        "fraction_of_ceiling": round(fastest / result["ceilings"]["float32"], 3),
    }
    reached = {name: ratio[name] >= bar for name, bar in BARS.items()}
    reached["memory"] = share is not None and share <= MEMORY_BAR
    reached["cosine"] = all(errors[name]["cosine"] >= COSINE_BAR for name in int8)
    reached["baseline"] = baseline["fraction_of_ceiling"] >= VISION_BAR
    return {
        "ratio": ratio, "best": best, "error": error, "memory_mb": memory, "memory_share": share, "torch": baseline,
        "bars": {**BARS, "memory": MEMORY_BAR, "cosine": COSINE_BAR, "baseline": VISION_BAR}, "reached": reached,
    }  # fmt: skip


FAMILIES = {
    "smolvla": Family("full", make_smolvla, ("ort", "openvino"), headline),
    "act": Family("act-full", make_act, ("ort",)),
}


def main(argv: Sequence[str]) -> int:
    parser = bench_parser("full", "the full-size benchmark", cores=2)
    parser.add_argument("--family", choices=tuple(FAMILIES), default="smolvla", help="which policy")
    add_against_lerobot(parser)
    parser.add_argument(
        "--work",
        type=folder_to_write,
        metavar="DIR",
        help="checkpoint and bundles, made once (default: out/bench/FAMILY)",
    )
    parser.add_argument("--rounds", type=count, default=7, help="measured rounds, at least 5")
    arguments = parser.parse_args(argv)
    console, family = Console(), FAMILIES[arguments.family]
    work = arguments.work or REPOSITORY / "out" / "bench" / arguments.family
    with console.status("starting") as status:
        specs = prepare(work, family, arguments.against_lerobot, arguments.threads, status.update)
        result = measure(specs, Rounds(max(5, arguments.rounds), warm_up=1), arguments.threads, status.update)
    if family.judge is not None:
        result.update(family.judge(result))
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out / f"{family.name}.json", result)
    write_report(result, arguments.out, family.name)
    for line in markdown(result):
        console.print(line, markup=False, soft_wrap=True)
    if family.judge is None:
        return 0
    print(json.dumps({name: result[name] for name in ("ratio", "memory_share", "torch", "reached")}))
    missed = [bar for bar, reached in result["reached"].items() if not reached]
    if missed:
        raise CheckFailed(f"missed: {', '.join(missed)}; results are in {arguments.out / family.name}.json")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
