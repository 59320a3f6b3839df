# SPDX-License-Identifier: Apache-2.0
"""A cube that moves all the time: how well the tip follows it with prefixes made in front of the plans or beside them.

    python -m vla_edge.benchmarks.flow.moving_cube --bundle BUNDLE [--out DIR]

Lockstep at 30 Hz, the same scenes for every row. A prefix takes 0, 5 or 15 ticks, a plan on a kept prefix one. In
front, each plan waits for its own prefix and the next one begins when it ends. Beside, there is a plan at every tick,
with fresh joints and the last prefix that is ready: its pictures are one to two prefixes old. The named cube swings
about the base; judged is the tip's distance from the place above it, from 3 s on. Ceiling: no delay at all, in front.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from vla_edge.benchmarks.bench_report import bench_parser, write_result
from vla_edge.benchmarks.moving_episodes import turn_cube
from vla_edge.bundle import Bundle, open_bundle
from vla_edge.command_line import count, run_command
from vla_edge.engines.engine import Engine, EngineOptions, load_engine
from vla_edge.robot.sim.simulated_arm import SimulatedArm
from vla_edge.runtime.inference.cache import CacheMode, Reason
from vla_edge.runtime.inference.refresh import Refresh
from vla_edge.runtime.inference.scene_gate import GateSettings
from vla_edge.runtime.inference.session import InferenceRequest, InferenceResult, SessionOptions
from vla_edge.trials.evaluate_reach import mcnemar
from vla_edge.trials.lockstep import LockstepOptions
from vla_edge.trials.reach_task import REACHED_M, SessionPlanner, new_arm, reach, wanted_colour

FIRST_SEED = 340_000
HZ, SECONDS, JUDGED_S = 30, 11.0, 3.0
SWING_DEG, SWING_S = 10.0, 8.0
"""Of the cube about the base: 8 degrees a second at the fastest, about 3 cm/s."""
DELAYS = (0, 5, 15)
TOLD_EVERY = 5
EVERY_CHANGE = GateSettings("pooled", -1, still_mean=0, still_worst=0, max_reuse=10**6, max_age_s=1e9)
OPTIONS = {
    Refresh.FRONT: SessionOptions(),
    Refresh.BESIDE: SessionOptions(CacheMode.STILL, gate=EVERY_CHANGE, refresh=Refresh.BESIDE),
}


NAMES = {Refresh.FRONT: "in front", Refresh.BESIDE: "beside"}


class DelayedPlanner(SessionPlanner):
    """A planner whose refresh beside the plans takes exactly `delay` ticks, however long it really takes."""

    def __init__(self, bundle: Bundle, engine: Engine, options: SessionOptions, delay: int) -> None:
        super().__init__(bundle, engine, options)
        self._delay = delay
        self._begun: int | None = None
        self.ages_s: list[float] = []

    def reset(self, seed: int, options: LockstepOptions) -> None:
        super().reset(seed, options)
        self._begun = None

    def infer(self, request: InferenceRequest) -> InferenceResult | None:
        tick = request.observation.joints.tick
        adopt = self._begun is not None and tick - self._begun >= self._delay
        result = super().infer(replace(request, adopt=adopt))
        assert result is not None
        if adopt:
            self._begun = None
        if self._begun is None and result.decision.reason is Reason.BESIDE:
            self._begun = tick
        self.ages_s.append(0.0 if result.decision.prefix else result.decision.age_s or 0.0)
        return result


def follow(arm: SimulatedArm, planner: DelayedPlanner, seed: int, options: LockstepOptions) -> NDArray[np.float64]:
    """The tip's distance from the place above the swinging cube after each tick, metres [ticks]."""
    colour, distances = wanted_colour(seed), np.empty(round(SECONDS * HZ))
    place = int(arm.model.joint(f"{colour}_cube").qposadr[0])

    def watch(arm: SimulatedArm, tick: int) -> None:
        target = [*arm.configuration[place : place + 2], arm.scene.target(colour)[2]]
        distances[tick] = np.linalg.norm(arm.tip - target)
        turn_cube(arm, colour, swing(tick + 1) - swing(tick))

    reach(arm, planner, seed, colour, replace(options, watch=watch))
    return distances


def swing(tick: int) -> float:
    """The cube's angle from its first place, degrees."""
    return float(SWING_DEG * np.sin(2 * np.pi * tick / HZ / SWING_S))


def row_of(errors_m: Sequence[float], planner: DelayedPlanner, options: LockstepOptions) -> dict[str, Any]:
    """The scenes so far with prefixes of one kind and delay. errors_m: of each scene, its mean distance."""
    return {
        "success": float(np.mean(np.array(errors_m) <= REACHED_M)),
        "error_cm": float(np.mean(errors_m) * 100),
        "error_cm_p90": float(np.quantile(errors_m, 0.9) * 100),
        "plans_a_second": HZ / options.replan_ticks,
        "prefix_age_ms_p50": float(np.median(planner.ages_s) * 1e3),
        "errors_m": list(errors_m),
    }


def rows_of(bundle: Bundle, engine: Engine, seeds: range) -> Iterator[dict[str, dict[str, Any]]]:
    """A row for each kind and delay after every TOLD_EVERY scenes and at the end: a run that is cut short is a smaller
    one. The same scenes in front and beside are compared in pairs."""
    kinds = [(delay, refresh) for delay in DELAYS for refresh in (Refresh.FRONT, Refresh.BESIDE)]
    planners = {kind: DelayedPlanner(bundle, engine, OPTIONS[kind[1]], kind[0]) for kind in kinds}
    options, errors = {}, {kind: list[float]() for kind in kinds}
    for delay, refresh in kinds:
        ticks = 1 + (delay if refresh is Refresh.FRONT else 0)
        sizes = planners[delay, refresh].sizes
        options[delay, refresh] = LockstepOptions(sizes, HZ, seconds=SECONDS, delay_ticks=ticks, replan_ticks=ticks)
    arm = new_arm(options[kinds[0]])
    for seed in track(seeds, "scenes", console=Console(stderr=True)):
        for kind in kinds:
            distances = follow(arm, planners[kind], seed, options[kind])
            errors[kind].append(float(distances[round(JUDGED_S * HZ) :].mean()))
        if len(errors[kind]) % TOLD_EVERY == 0 or seed == seeds[-1]:
            made = {kind: row_of(errors[kind], planners[kind], options[kind]) for kind in kinds}
            for delay in DELAYS:
                front, beside = made[delay, Refresh.FRONT], made[delay, Refresh.BESIDE]
                beside["pairs"] = mcnemar(
                    *([error <= REACHED_M for error in row["errors_m"]] for row in (front, beside))
                )
                beside["nearer"] = float(np.mean(np.array(beside["errors_m"]) < front["errors_m"]))
            yield {f"{NAMES[refresh]}, {delay} ticks": row for (delay, refresh), row in made.items()}
    arm.close()


def page(rows: dict[str, dict[str, Any]], scenes: int) -> str:
    """The rows as Markdown."""
    lines = [
        f"# A cube that moves, {scenes} scenes",
        "",
        f"| prefix made | plans a second | its age when used, p50 | near ({REACHED_M * 100:g} cm) on average | "
        "distance, mean (p90) | nearer than in front |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        nearer = f"{row['nearer']:.0%} of scenes" if "nearer" in row else ""
        lines.append(
            f"| {name} | {row['plans_a_second']:.0f} | {row['prefix_age_ms_p50']:.0f} ms | {row['success']:.0%} | "
            f"{row['error_cm']:.1f} cm ({row['error_cm_p90']:.1f}) | {nearer} |"
        )
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str]) -> int:
    parser = bench_parser("flow.moving_cube", "following a cube that moves", "of the reaching task")
    parser.add_argument("--episodes", type=count, default=60, help="scenes, the same for every row")
    options = parser.parse_args(argv)
    engine = load_engine("ort", EngineOptions(threads=options.threads))
    text = ""
    for rows in rows_of(open_bundle(options.bundle), engine, range(FIRST_SEED, FIRST_SEED + options.episodes)):
        (scenes,) = {len(row["errors_m"]) for row in rows.values()}
        text = page(rows, scenes)
        write_result(options.out, "moving_cube", {"episodes": scenes, "rows": rows}, text)
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
