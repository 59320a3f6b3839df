# SPDX-License-Identifier: Apache-2.0
"""`vla-runtime demo` (`make demo`): from a checkpoint to a simulated arm that does what it is told.

Exports the committed reaching policy to a bundle (with `--robot-only`, and where only the wheel is installed: takes the
committed bundle, no torch needed), then lets `vla-runtime` run it on the simulated Koch (`--arm so101`: SO-101): once
for each instruction, in the same scene. Each run is recorded as a video and a strip of pictures. With `--random` a tiny
random policy takes the trained one's place: the same path, and a senseless motion.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vla_edge.command_line import answer, folder_to_write, positive, whole
from vla_edge.errors import CheckFailed, ConfigError
from vla_edge.robot.sim.bodies.koch_body import KOCH
from vla_edge.robot.sim.bodies.so101_body import SO101

EXAMPLES = {
    KOCH.name: Path(str(files("vla_edge"))) / "examples" / "reach-cube",
    SO101.name: Path(str(files("vla_edge"))) / "examples" / "reach-cube-so101",
}
"""Arm → `checkpoint` and `bundle` of the policy that learnt on it; a wheel holds the Koch's bundle alone."""
COLOURS = ("red", "green", "blue")
PICTURE = (360, 480)
"""Height and width of a picture of the strip."""
REACHED_M = 0.03
"""The tip within this distance of the point above the cube: the same limit as in `trials/reach_task.py`."""


COMMANDS = {"export-engines": "vla_edge.export.command", "vla-runtime": "vla_edge.runtime.command"}


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """arm: who moves. out: folder for the bundle, videos and strips. seconds: of each run. seed: of the scene and the
    noise."""

    arm: str
    out: Path
    robot_only: bool
    random: bool
    seconds: float
    seed: int


def demo(options: DemoOptions) -> dict[str, Any]:
    """Run everything into `options.out`; what each instruction led to. CheckFailed when a command failed."""
    out, example = options.out, EXAMPLES[options.arm]
    if not (example.is_dir() or options.random):
        raise ConfigError(
            f"{example} is not here: a wheel holds the Koch's alone; run it in a clone, or leave --arm out"
        )
    _clear(out)
    if options.robot_only or not ((example / "checkpoint").is_dir() or options.random):
        bundle = example / "bundle"
        print(f"== the bundle of the example, {bundle}")
    else:
        bundle = out / "bundle"
        checkpoint = _checkpoint(out, None if options.random else example / "checkpoint")
        _call(
            "export-engines",
            ["--checkpoint", str(checkpoint), "--out", str(bundle), "--joint-units", "degrees", "--fps", "30"],
        )
    report: dict[str, Any] = {}
    for colour in COLOURS:
        words = ["--bundle", str(bundle), "--robot", "sim", "--arm", options.arm, "--hz", "30"]
        words += ["--task", f"reach the {colour} cube", "--seconds", str(options.seconds), "--seed", str(options.seed)]
        summary = _call("vla-runtime", [*words, "--video", str(out / f"{colour}.mp4"), "--json"])
        distance = summary["simulated_arm"]["tip_to_cube_m"]
        nearest = min(distance, key=distance.__getitem__)
        print(
            f"   told {colour!r}: in the last second the tip was {distance[nearest] * 100:.1f} cm from the {nearest} "
            f"cube's place; pictures: {out / f'{colour}.png'}"
        )
        report[colour] = {
            "tip_to_cube_m": distance,
            "reached": distance[colour] <= REACHED_M,
            "missed": summary["missed"],
            "ticks": summary["ticks"],
        }
    _overview(out)
    return report


def _overview(out: Path) -> None:
    """`overview.png`: one row of five pictures for each instruction, cut from the strips, in half size."""
    rows = []
    for colour in COLOURS:
        strip = cv2.imread(str(out / f"{colour}.png"))
        if strip is None:
            raise CheckFailed(f"{out / f'{colour}.png'} was not recorded; look at the messages of vla-runtime above")
        height, width = PICTURE
        tiles = [
            strip[y : y + height, x : x + width]
            for y in range(0, strip.shape[0], height)
            for x in range(0, strip.shape[1], width)
        ]
        chosen = np.concatenate([tiles[round(i * (len(tiles) - 1) / 4)] for i in range(5)], axis=1)
        cv2.putText(
            chosen,
            f'"reach the {colour} cube"',
            (12, 30),
            cv2.FONT_HERSHEY_SIMPLEX,
            0.9,
            (255, 255, 255),
            2,
            cv2.LINE_AA,
        )
        rows.append(cv2.resize(chosen, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA))
    cv2.imwrite(str(out / "overview.png"), np.concatenate(rows))


def _checkpoint(out: Path, trained: Path | None) -> Path:
    if trained:
        print(f"== the trained policy of the example, {trained}")
        return trained
    try:
        from tests.random_policy import RandomPolicy, write_random_policy
    except ModuleNotFoundError:
        raise ConfigError("--random takes the repository's tests; run it in a clone, or leave --random out") from None

    print("== a tiny random policy: it was never trained, its motion means nothing")
    write_random_policy(out / "checkpoint", RandomPolicy(image_width=128, image_height=96))
    return out / "checkpoint"


def _call(name: str, words: Sequence[str]) -> dict[str, Any]:
    """Run one of our commands as a person would, shown on the terminal; its answer when it was asked for JSON."""
    print(f"$ {name} {shlex.join(words)}", flush=True)
    as_json = "--json" in words
    ran = subprocess.run(
        [sys.executable, "-m", COMMANDS[name], *words], stdout=subprocess.PIPE if as_json else None, text=True
    )
    if ran.returncode != 0:
        raise CheckFailed(f"{name} ended with exit code {ran.returncode}; its message stands above")
    return dict(json.loads(ran.stdout)) if as_json else {}


def _clear(out: Path) -> None:
    """Make `out`, and remove what an earlier demo left there; ConfigError when it holds anything else."""
    ours = {
        "bundle",
        "checkpoint",
        "overview.png",
        *(f"{colour}{ending}" for colour in COLOURS for ending in (".mp4", ".png")),
    }
    out.mkdir(parents=True, exist_ok=True)
    foreign = sorted(path.name for path in out.iterdir() if path.name not in ours)
    if foreign:
        raise ConfigError(f"{out} holds {foreign[0]}, which no demo wrote; give another --out")
    for path in out.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--arm", choices=sorted(EXAMPLES), default=KOCH.name, help="which simulated arm moves")
    parser.add_argument("--out", type=folder_to_write, required=True, help="folder for the bundle, videos and strips")
    parser.add_argument("--robot-only", action="store_true", help="the example's bundle as it is; no torch needed")
    parser.add_argument("--random", action="store_true", help="a random policy in place of the trained one")
    parser.add_argument("--seconds", type=positive, default=8.0, help="of each run")
    parser.add_argument("--seed", type=whole, default=5, help="of the scene and the noise")


def run(arguments: argparse.Namespace) -> int:
    names = [field.name for field in fields(DemoOptions)]
    report = demo(DemoOptions(**{name: getattr(arguments, name) for name in names}))
    reached = [colour for colour, row in report.items() if row["reached"]]
    out: Path = arguments.out
    print(
        f"reached {len(reached)} of {len(report)} cubes ({', '.join(reached) or 'none'}); videos and strips lie in "
        f"{out}, all three in {out / 'overview.png'}"
    )
    answer(report)
    if len(reached) < len(report) and not arguments.random:
        raise CheckFailed(
            f"the trained policy reached {', '.join(reached) or 'no cube'}; look at the strips in {out}, "
            "and try a quieter machine or --seconds 15"
        )
    bundle = out / "bundle" if (out / "bundle").is_dir() else EXAMPLES[arguments.arm] / "bundle"
    activate = Path(sys.prefix) / "bin" / "activate"
    print("next, as it can be typed here:")
    if activate.is_file() and shutil.which("vla-runtime") != str(Path(sys.prefix) / "bin" / "vla-runtime"):
        print(f"  . {_short(activate)}")
    arm = "" if arguments.arm == KOCH.name else f" --arm {arguments.arm}"
    print(f'  vla-runtime --robot sim{arm} --bundle {_short(bundle)} --task "reach the blue cube" --video blue.mp4')
    print("  vla-runtime report        (a page on what that run did)")
    print("  export-engines --checkpoint YOUR_CHECKPOINT --out my-bundle        (docs/from-lerobot.md goes on)")
    return 0


def _short(path: Path) -> str:
    """Relative to where the user is, where it lies there."""
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))
