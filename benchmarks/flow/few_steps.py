# SPDX-License-Identifier: Apache-2.0
"""What fewer flow steps and shorter chunks cost the trained reaching policy: the same scenes in its own ten steps, in
4, 2 and 1, and by other bundles made of it: distilled, or of the first actions of its chunk.

    python -m vla_edge.benchmarks.flow.few_steps --bundle BUNDLE --other BUNDLE --other BUNDLE --out DIR

Ceiling: the policy in its own ten steps. The chunk's error is against those from the same noise, in joint units; the
closed loop runs in lockstep under the default hand-over for 6 s, success in pairs with ten steps.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from vla_edge.benchmarks.bench_report import bench_parser, write_result
from vla_edge.benchmarks.handover_motion import FIRST_SEED, TURN_TICK, Motion, Way, episode, reach_row
from vla_edge.bundle import Bundle, open_bundle
from vla_edge.command_line import count, run_command
from vla_edge.engines.engine import Engine, EngineOptions, load_engine
from vla_edge.robot.sim.scene import random_scene
from vla_edge.robot.sim.simulated_arm import SimulatedArm
from vla_edge.runtime.inference.session import InferenceRequest, SessionOptions, noise_of
from vla_edge.trials.lockstep import LockstepOptions, observe
from vla_edge.trials.reach_expert import instruction
from vla_edge.trials.reach_task import SessionPlanner, new_arm, wanted_colour

PLAIN = (4, 2, 1)
TOLD_EVERY = 10
COLUMNS = {
    "success": "reached",
    "error_cm": "tip error, cm",
    "settling_s_p50": "settles in, s (p50)",
    "tremble_deg_p50": "tremble at rest, ° (p50)",
    "tremble_deg_p90": "(p90)",
    "chunk_error": "mean difference of the chunk from ten steps, joint units",
}


def first_chunk(planner: SessionPlanner, arm: SimulatedArm, seed: int) -> NDArray[np.float32]:
    """The chunk [C, joints] of a scene's first look, from one noise a scene."""
    session = planner.session
    arm.reset(random_scene(seed))
    session.reset()
    seen = observe(arm, 0, 0, instruction(wanted_colour(seed)), planner.sizes)
    noise = noise_of(seed, 0, (session.policy.chunk_size, session.policy.max_action_dim))
    result = session.infer(InferenceRequest(seen, 0, noise=noise))
    assert result is not None
    return result.actions


def planners_of(
    bundle: Bundle, plain: Sequence[int], others: Sequence[Bundle], engine: Engine
) -> dict[str, SessionPlanner]:
    """A planner for each count of steps, the policy's own first, and for each other bundle."""
    whole = bundle.manifest.policy
    ways: list[tuple[str, Bundle, int | None]] = [(f"{whole.num_steps} steps", bundle, None)]
    ways += [(f"{steps} steps, plain", bundle, steps) for steps in plain]
    for made in others:
        policy = made.manifest.policy
        words = [f"{policy.num_steps} steps", *(["distilled"] if policy.distilled else [])]
        words += [f"first {policy.chunk_size} actions"] if policy.chunk_size < whole.chunk_size else []
        name = ", ".join(words)
        ways.append((f"{name}, {made.path.name}" if name in {way[0] for way in ways} else name, made, None))
    return {name: SessionPlanner(made, engine, SessionOptions(steps=steps)) for name, made, steps in ways}


def rows_of(planners: Mapping[str, SessionPlanner], seeds: range) -> Iterator[dict[str, dict[str, Any]]]:
    """Rows by their names after every TOLD_EVERY scenes and at the end: a run that is cut short is a smaller one."""
    arm = new_arm(LockstepOptions(next(iter(planners.values())).sizes))
    motions: dict[str, list[Motion]] = {name: [] for name in planners}
    chunks: dict[str, list[NDArray[np.float32]]] = {name: [] for name in planners}
    for seed in track(seeds, "scenes", console=Console(stderr=True)):
        for name, planner in planners.items():
            chunks[name].append(first_chunk(planner, arm, seed))
            motions[name].append(episode(arm, planner, seed, Way(name), TURN_TICK))
        if len(motions[name]) % TOLD_EVERY == 0 or seed == seeds[-1]:
            first, *_ = planners
            yield {
                name: {
                    **reach_row(motions[name], None if name == first else motions[first]),
                    "chunk_error": chunk_error(chunks[name], chunks[first]),
                }
                for name in planners
            }
    arm.close()


def chunk_error(made: Sequence[NDArray[np.float32]], whole: Sequence[NDArray[np.float32]]) -> float:
    """The mean difference of chunks [C, joints], or their first actions, from the whole ones."""
    return float(np.mean([np.abs(chunk - other[: len(chunk)]).mean() for chunk, other in zip(made, whole)]))


def page(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [f"| flow steps | {' | '.join(COLUMNS.values())} |", "|---" * (len(COLUMNS) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(f'{row[key]:.2f}' for key in COLUMNS)} |" for name, row in rows.items()]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str]) -> int:
    about = "the reaching policy in fewer flow steps"
    parser = bench_parser("flow.few_steps", about, "of the reaching task, not distilled", cores=2)
    parser.add_argument("--other", type=Path, action="append", default=[], metavar="BUNDLE", help="made of its policy")
    parser.add_argument("--plain", type=count, nargs="*", default=PLAIN, metavar="N", help="fewer steps of --bundle")
    parser.add_argument("--episodes", type=count, default=200, help="scenes, the same for every row")
    options = parser.parse_args(argv)
    engine = load_engine("ort", EngineOptions(threads=options.threads))
    seeds = range(FIRST_SEED, FIRST_SEED + options.episodes)
    others = [open_bundle(path) for path in options.other]
    planners = planners_of(open_bundle(options.bundle), options.plain, others, engine)
    text = ""
    for rows in rows_of(planners, seeds):
        (episodes,) = {row["episodes"] for row in rows.values()}
        text = page(rows)
        result = {"episodes": episodes, "rows": rows}
        write_result(options.out, "few_steps", result, f"# Fewer flow steps, {episodes} scenes\n\n{text}")
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
