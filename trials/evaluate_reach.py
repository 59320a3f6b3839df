# SPDX-License-Identifier: Apache-2.0
"""Closed loop on unseen scenes: the same episodes for torch, the exported graphs, INT8, and the prefix cache.

    python -m vla_edge.trials.evaluate_reach --checkpoint DIR --bundle DIR [--int8 DIR] --scenes 100 --out FILE.md

Every variant runs the same seeds with the same noise, so that differences are counted in pairs (McNemar's exact test
against the first variant). Each scene is run twice: told to reach its cube, and told another one (`wrong`), where
reaching the first cube is a failure to listen. A policy that does not listen reaches the right cube in a third of the
scenes. Runs in lockstep: an inference takes `--delay` actions in the simulated world, whatever it takes here.
"""

from __future__ import annotations

import json
import math
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from vla_edge.bundle import open_bundle
from vla_edge.command_line import between, count, file_to_write, positive, run_command, threads, whole
from vla_edge.command_parser import CommandParser
from vla_edge.contract import Observation
from vla_edge.engines.engine import EngineOptions, load_engine
from vla_edge.errors import CheckFailed, ConfigError
from vla_edge.files import write_json, write_text
from vla_edge.policies.features import STATE
from vla_edge.policies.smolvla.policy import SmolVLAPolicy
from vla_edge.robot.sim.bodies.arm_body import ArmBody
from vla_edge.robot.sim.bodies.koch_body import KOCH
from vla_edge.robot.sim.mjcf import CUBE_COLOURS
from vla_edge.robot.sim.scene import BODIES
from vla_edge.runtime.control.control_settings import MAX_HZ, MIN_HZ, ControlRate, candidates
from vla_edge.runtime.control.handover import ONE_PASS, HandOver, HandOverOptions
from vla_edge.runtime.inference.cache import CacheMode
from vla_edge.runtime.inference.scene_gate import read_gate
from vla_edge.runtime.inference.session import Noise, SessionOptions, noise_of
from vla_edge.trials.lockstep import LockstepOptions, Planner, options_at
from vla_edge.trials.reach_task import SessionPlanner, new_arm, other_colour, reach, wanted_colour

FIRST_SEED = 50_000
"""Scenes of the evaluation; those of the training data come from another generator and other seeds."""
LEAST_SUCCESS, MOST_WRONG = 0.90, 0.10


@dataclass(frozen=True, slots=True)
class Variant:
    """One row of the table, how its planner is made, and how its chunks follow each other."""

    name: str
    make: Callable[[], Planner]
    handover: HandOverOptions = HandOverOptions()


@dataclass(frozen=True, slots=True)
class VariantResult:
    """reached: per scene, the right cube under the right instruction. obeyed_wrong: per scene, the right cube although
    another one was named. error_m: mean distance of the tip from the point above the named cube, right instruction.
    infer_ms: median of an inference here. hit_rate: inferences that looked at no picture."""

    name: str
    reached: tuple[bool, ...]
    obeyed_wrong: tuple[bool, ...]
    error_m: float
    infer_ms: float
    hit_rate: float | None

    @property
    def success(self) -> float:
        return float(np.mean(self.reached))

    @property
    def wrong(self) -> float:
        return float(np.mean(self.obeyed_wrong))


class TorchPlanner:
    """The checkpoint in PyTorch behind the planner's border, with noise of its own for every inference."""

    def __init__(self, checkpoint: Path) -> None:
        self._policy = SmolVLAPolicy.from_pretrained(checkpoint)
        self._seed, self._inferences = 0, 0
        self.sizes = {camera.source: (camera.height, camera.width) for camera in self._policy.settings.cameras}

    def reset(self, seed: int, options: LockstepOptions) -> None:
        self._seed, self._inferences = seed, 0

    def plan(self, observation: Observation, now_ns: int) -> NDArray[np.float32]:
        config = self._policy.config
        noise = noise_of(self._seed, self._inferences, (config.chunk_size, config.max_action_dim))
        self._inferences += 1
        values = {name: frame.image for name, frame in observation.frames.items()}
        batch = self._policy.preprocess({**values, STATE: observation.joints.positions, "task": observation.task})
        actions = self._policy.predict_action_chunk(batch, torch.from_numpy(noise)[None])
        assert isinstance(actions, torch.Tensor)
        return np.asarray(self._policy.postprocess(actions)[0].numpy(), np.float32)


class ColourPlanner:
    """A bundle per colour behind the planner's border: that of the task's colour plans. For a policy that reads no
    task. folder: holds one bundle for each colour, of its name."""

    def __init__(self, folder: Path, options: SessionOptions, threads: int) -> None:
        self.planners = {colour: _session(folder / colour, options, threads) for colour in CUBE_COLOURS}
        self.sizes = self.planners[CUBE_COLOURS[0]].sizes

    def reset(self, seed: int, options: LockstepOptions) -> None:
        for planner in self.planners.values():
            planner.reset(seed, options)

    def plan(self, observation: Observation, now_ns: int) -> NDArray[np.float32]:
        colour = next(colour for colour in CUBE_COLOURS if colour in observation.task)
        return self.planners[colour].plan(observation, now_ns)


class _Timed:
    """A planner that keeps how long each plan took, in ms."""

    def __init__(self, planner: Planner) -> None:
        self.inner = planner
        self.ms: list[float] = []

    def reset(self, seed: int, options: LockstepOptions) -> None:
        self.inner.reset(seed, options)

    def plan(self, observation: Observation, now_ns: int) -> NDArray[np.float32]:
        start = time.perf_counter()
        actions = self.inner.plan(observation, now_ns)
        self.ms.append((time.perf_counter() - start) * 1e3)
        return actions


def variants(checkpoint: Path | None, bundle: Path, int8: Path | None, threads: int) -> list[Variant]:
    """torch and the float32 graphs, each new chunk with fresh noise in place of the old one (what torch can do); then
    with the default hand-over and noise the float32 graphs, INT8, and the prefix cache (still, gated) where
    calibrated."""
    plain, whole = HandOverOptions(HandOver.REPLACE), SessionOptions()
    rows = [] if checkpoint is None else [Variant("torch float32, replace", partial(TorchPlanner, checkpoint), plain)]
    fresh = SessionOptions(noise=Noise.FRESH)
    rows.append(Variant("ONNX float32, replace", partial(_session, bundle, fresh, threads), plain))
    rows.append(Variant("ONNX float32", partial(_session, bundle, whole, threads)))
    if int8 is not None:
        rows.append(Variant("ONNX INT8", partial(_session, int8, whole, threads)))
    if read_gate(open_bundle(bundle)) is not None:
        rows.append(Variant("cached (still)", partial(_session, bundle, SessionOptions(CacheMode.STILL), threads)))
        rows.append(Variant("gated", partial(_session, bundle, SessionOptions(CacheMode.GATED), threads)))
        if not open_bundle(bundle).manifest.why_not_delta:
            rows.append(Variant("delta", partial(_session, bundle, SessionOptions(CacheMode.DELTA), threads)))
    return rows


def act_variants(folder: Path, threads: int) -> list[Variant]:
    """ACT's bundles, one a colour, with its default hand-over and with LeRobot's ensemble; with the tokens of still
    cameras kept where calibrated."""
    make, kept = (
        partial(ColourPlanner, folder, SessionOptions(cache), threads) for cache in (CacheMode.OFF, CacheMode.STILL)
    )
    rows = [
        Variant(f"ACT float32, {kind.value}", make, HandOverOptions(kind)) for kind in (ONE_PASS, HandOver.ENSEMBLE)
    ]
    if all(read_gate(open_bundle(folder / colour)) is not None for colour in CUBE_COLOURS):
        rows.append(Variant(f"ACT float32, {ONE_PASS.value}, still", kept, HandOverOptions(ONE_PASS)))
    return rows


def _session(bundle: Path, options: SessionOptions, threads: int) -> SessionPlanner:
    return SessionPlanner(open_bundle(bundle), load_engine("ort", EngineOptions(threads=threads)), options)


def evaluate(variant: Variant, seeds: Sequence[int], options: LockstepOptions, body: ArmBody = KOCH) -> VariantResult:
    """Every scene under the right and under a wrong instruction."""
    planner = _Timed(variant.make())
    options = replace(options, handover=variant.handover)
    arm = new_arm(options, body)
    reached, wrong, errors = [], [], []
    for seed in track(seeds, variant.name, console=Console(stderr=True)):
        colour = wanted_colour(seed)
        right = reach(arm, planner, seed, colour, options)
        reached.append(right.reached(colour))
        errors.append(right.distance_m[colour])
        wrong.append(reach(arm, planner, seed, other_colour(seed), options).reached(colour))
    arm.close()
    inner = planner.inner
    planners = inner.planners.values() if isinstance(inner, ColourPlanner) else [inner]
    counts = [item.session.cache.counts for item in planners if isinstance(item, SessionPlanner)]
    ran = sum(item.inferences for item in counts)
    hit_rate = sum(item.hits for item in counts) / max(1, ran) if counts else None
    return VariantResult(
        variant.name, tuple(reached), tuple(wrong), float(np.mean(errors)), float(np.median(planner.ms)), hit_rate
    )


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> tuple[int, int, float]:
    """(only the first succeeded, only the second did, two-sided exact p) over pairs; p = 1 without any difference."""
    only_first = sum(a and not b for a, b in zip(first, second))
    only_second = sum(b and not a for a, b in zip(first, second))
    count, least = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(count, k) for k in range(least + 1)) / 2**count
    return only_first, only_second, min(1.0, 2 * tail)


def wilson(share: float, count: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson's score)."""
    z = 1.959964
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return middle - half, middle + half


def table(results: Sequence[VariantResult]) -> str:
    """The results as a Markdown table."""
    lines = [
        "| policy | reached, right instruction (95 %) | reached it although told another | mean tip error | against "
        "the first (McNemar) | prefix reused | inference here, p50 |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        low, high = wilson(result.success, len(result.reached))
        pair = "–"
        if result is not results[0]:
            lost, won, p = mcnemar(results[0].reached, result.reached)
            pair = f"−{lost} +{won}, p = {p:.2f}"
        hits = "–" if result.hit_rate is None else f"{result.hit_rate:.0%}"
        lines.append(
            f"| {result.name} | {result.success:.0%} ({low:.0%}–{high:.0%}) | {result.wrong:.0%} | "
            f"{result.error_m * 100:.1f} cm | {pair} | {hits} | {result.infer_ms:.1f} ms |"
        )
    return "\n".join(lines) + "\n"


def write_results(out: Path, results: Sequence[VariantResult], facts: Mapping[str, Any]) -> None:
    """`out` (.md) with the table, and the same as JSON beside it."""
    text = f"# Reaching the named cube: closed loop on {len(results[0].reached)} unseen scenes\n\n"
    text += "\n".join(f"- {name}: {value}" for name, value in facts.items()) + "\n\n" + table(results)
    write_text(out, text)
    rows = [{**asdict(result), "success": result.success, "wrong": result.wrong} for result in results]
    write_json(out.with_suffix(".json"), {"facts": dict(facts), "variants": rows}, indent=None)


def main(argv: Sequence[str]) -> int:
    parser = CommandParser(
        prog="python -m vla_edge.trials.evaluate_reach", description="closed-loop success on unseen scenes"
    )
    parser.add_argument("--checkpoint", type=Path, help="also in PyTorch")
    parser.add_argument(
        "--bundle", type=Path, required=True, help="float32 bundle; with the cache where it is calibrated"
    )
    parser.add_argument("--int8", type=Path, help="INT8 bundle of the same checkpoint")
    parser.add_argument(
        "--act", type=Path, metavar="DIR", help="ACT bundles of the task, one a colour: DIR/red, DIR/green, DIR/blue"
    )
    parser.add_argument("--arm", choices=sorted(BODIES), default=KOCH.name, help="the arm that the policy learnt on")
    parser.add_argument("--scenes", type=count, default=100)
    parser.add_argument("--first-seed", type=whole, default=FIRST_SEED)
    parser.add_argument(
        "--hz",
        type=between(MIN_HZ, MAX_HZ),
        help="control ticks a second, 6 to 100 (default: 90; 30 where the bundle does not say the data's rate)",
    )
    parser.add_argument(
        "--delay", type=whole, default=2, metavar="ACTIONS", help="an inference takes this long in the simulated world"
    )
    parser.add_argument("--replan", type=count, default=15, metavar="ACTIONS", help="from one observation to the next")
    parser.add_argument("--seconds", type=positive, default=4.0, help="of each episode")
    parser.add_argument("--threads", type=threads, default=2)
    parser.add_argument(
        "--out", type=file_to_write, required=True, metavar="FILE.md", help="table; JSON is written beside it"
    )
    arguments = parser.parse_args(argv)
    if arguments.out.suffix != ".md":
        raise ConfigError(f"--out {arguments.out} must end in .md")
    torch.set_num_threads(arguments.threads)
    bundle = open_bundle(arguments.bundle)
    sizes = {camera.source: (camera.height, camera.width) for camera in bundle.manifest.cameras}
    fps = bundle.manifest.fps
    rate = ControlRate(candidates(arguments.hz, fps)[0], fps)
    options = options_at(rate, sizes, arguments.delay, arguments.replan, seconds=arguments.seconds)
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.scenes)
    scenes = (
        f"seeds {seeds[0]} to {seeds[-1]}, {options.seconds:.0f} s each, delay {arguments.delay} actions, a new plan "
        f"every {arguments.replan}, control at {rate.hz:g} Hz, arm {arguments.arm}"
    )
    rows = variants(arguments.checkpoint, arguments.bundle, arguments.int8, arguments.threads)
    rows += [] if arguments.act is None else act_variants(arguments.act, arguments.threads)
    results = [evaluate(variant, seeds, options, BODIES[arguments.arm]) for variant in rows]
    facts = {
        "scenes": scenes,
        "bundle": bundle.digest,
        "host": f"{platform.machine()}, {platform.system()} {platform.release()}, {arguments.threads} threads",
    }
    write_results(arguments.out, results, facts)
    print(table(results), end="")
    failed = [row for row in results if row.success < LEAST_SUCCESS or row.wrong > MOST_WRONG]
    shares = {row.name: {"success": row.success, "wrong": row.wrong, "error_m": row.error_m} for row in results}
    print(json.dumps(shares))
    if failed:
        raise CheckFailed(
            f"{failed[0].name}: {failed[0].success:.0%} reached, {failed[0].wrong:.0%} although told another; limits "
            f"are {LEAST_SUCCESS:.0%} and {MOST_WRONG:.0%}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
