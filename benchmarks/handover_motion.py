"""From one chunk to the next: how much the commanded velocity jumps, and what a slow host does instead.

    python -m vla_edge.benchmarks.handover_motion --bundle BUNDLE --out benchmarks/results

Lockstep on the simulated arm, the same scenes and noise for every policy. Ceiling:
the velocity steps of the same chunks where no new one takes over (their median
is what the policy's own actions do from tick to tick). Two kinds of host: 50 ms a
chunk (overlapping: replace, blend, inpaint) and 3 s (plan, then move). The step
is told twice: between the chunks' actions, and between the goals that left the
control core, after blending and the guard's limits.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from vla_edge.benchmarks.jitter import commit
from vla_edge.bundle import Bundle, open_bundle
from vla_edge.command_line import run_command
from vla_edge.contract import Observation
from vla_edge.engines.engine import Engine, EngineOptions, load_engine
from vla_edge.errors import CheckFailed, ConfigError
from vla_edge.files import write_json
from vla_edge.robot.sim.simulated_arm import SimulatedArm, units_from_radians
from vla_edge.runtime.control.control_settings import Handover
from vla_edge.runtime.control.handover import HandOver, PlannedChunk, inpaint_into, pace_of, velocity_step
from vla_edge.runtime.inference.session import InferenceRequest, PolicySession, noise_of
from vla_edge.trials.lockstep import LockstepOptions
from vla_edge.trials.reach_task import new_arm, reach, wanted_colour

FIRST_SEED = 330_000
FAST_TICKS, SLOW_TICKS, REPLAN_TICKS = 2, 90, 10
"""50 ms and 3 s at 30 Hz; a new plan every third of a second."""


class HandoverPlanner:
    """A bundle that remembers what it sent: for inpainting, and to tell each hand-over's velocity step."""

    def __init__(self, bundle: Bundle, engine: Engine, policy: HandOver, delay_ticks: int) -> None:
        self.session = PolicySession(bundle, engine)
        self.sizes = {camera.source: (camera.height, camera.width) for camera in bundle.manifest.cameras}
        self.steps: list[float] = []
        self.taken_over: list[int] = []
        self._policy, self._delay = policy, delay_ticks
        self._executing: PlannedChunk | None = None
        self._seed, self._inferences = 0, 0

    def reset(self, seed: int) -> None:
        self.session.reset()
        self._executing, self._seed, self._inferences, self.taken_over = None, seed, 0, []

    def plan(self, observation: Observation, now_ns: int) -> NDArray[np.float32]:
        policy, tick = self.session.policy, observation.joints.tick
        noise = noise_of(self._seed, self._inferences, (policy.chunk_size, policy.max_action_dim))
        self._inferences += 1
        tie = None
        if self._executing is not None and self._policy is HandOver.INPAINT:
            tie = inpaint_into(self._executing, tick, self._delay + 1, policy.chunk_size)
        result = self.session.infer(InferenceRequest(observation, now_ns, noise=noise, inpaint=tie))
        assert result is not None
        actions, rows = result.actions[: policy.n_action_steps], policy.n_action_steps
        if self._executing is not None:
            step = velocity_step(self._executing, actions, tick, tick + self._delay, 1 / 30)
            if step is not None:
                self.steps.append(step)
                self.taken_over.append(tick + self._delay)
        self._executing = PlannedChunk(result.latent[:rows], actions, tick)
        return actions


def velocity_steps(goals: NDArray[np.float64]) -> NDArray[np.float64]:
    """Change of the most affected joint's velocity from tick to tick, joint units/s [ticks], of goals [ticks, 6]; 0 for
    the first two."""
    change = np.abs(np.diff(goals, n=2, axis=0)).max(axis=1) * 30
    return np.concatenate([[0.0, 0.0], change])


def rms(values: Sequence[float] | NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(np.square(values)))) if len(values) else 0.0


def overlapped(bundle: Bundle, engine: Engine, policy: HandOver, seeds: range) -> dict[str, Any]:
    """The fast host under one hand-over policy."""
    planner = HandoverPlanner(bundle, engine, policy, FAST_TICKS)
    told: list[NDArray[np.float64]] = []
    options = LockstepOptions(
        planner.sizes, seconds=4.0, delay_ticks=FAST_TICKS, replan_ticks=REPLAN_TICKS,
        handover=Handover.BLEND if policy is HandOver.BLEND else Handover.REPLACE,
        watch=lambda arm, tick: told.append(units_from_radians(arm.goals)),
    )  # fmt: skip
    arm = new_arm(options)
    at, between, reached = [], [], 0
    for seed in track(seeds, policy.value, console=Console(stderr=True)):
        told.clear()
        colour = wanted_colour(seed)
        reached += reach(arm, planner, seed, colour, options).reached(colour)
        steps = velocity_steps(np.array(told))
        # Blending and the guard spread a step over the ticks after it.
        near = np.zeros(len(steps), bool)
        for tick in planner.taken_over:
            near[tick : tick + 6] = True
            at.append(float(steps[tick : tick + 6].max(initial=0.0)))
        between += steps[~near][4:].tolist()
    arm.close()
    return {
        "handovers": len(planner.steps), "reached": reached, "episodes": len(seeds),
        "action_step_max": max(planner.steps), "action_step_rms": rms(planner.steps),
        "goal_step_max": max(at), "goal_step_rms": rms(at), "goal_step_elsewhere_rms": rms(between),
    }  # fmt: skip


def plan_then_move(bundle: Bundle, engine: Engine, seeds: range) -> dict[str, Any]:
    """The slow host: 3 s a chunk."""
    planner = HandoverPlanner(bundle, engine, HandOver.REPLACE, SLOW_TICKS)
    moved: list[bool] = []
    last: list[NDArray[np.float64]] = []

    def watch(arm: SimulatedArm, tick: int) -> None:
        goals = arm.goals
        if last:
            moved.append(not np.array_equal(goals, last.pop()))
        last.append(goals)

    options = LockstepOptions(
        planner.sizes, seconds=24.0, delay_ticks=SLOW_TICKS, replan_ticks=SLOW_TICKS, plan_then_move=True, watch=watch
    )
    arm = new_arm(options)
    reached, latched = 0, 0
    states: Counter[str] = Counter()
    chunks: Counter[str] = Counter()
    for seed in track(seeds, "plan, then move", console=Console(stderr=True)):
        last.clear()
        colour = wanted_colour(seed)
        outcome = reach(arm, planner, seed, colour, options)
        reached += outcome.reached(colour)
        latched += outcome.result.latched
        states += outcome.result.states
        chunks += outcome.result.chunks
    arm.close()
    expected = pace_of(SLOW_TICKS / 30, SLOW_TICKS / 30, bundle.manifest.policy.n_action_steps, 1 / 30)
    return {
        "episodes": len(seeds), "reached": reached, "rhythm": expected.rhythm.value, "latched_ticks": latched,
        "share_in_state_moving": states["moving"] / states.total(), "share_with_a_moving_goal": float(np.mean(moved)),
        "expected_share": expected.motion_share, "states": dict(states), "chunks": dict(chunks),
    }  # fmt: skip


def draw(line: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, key, title in zip(
        figure.subplots(1, 2),
        ("action_step", "goal_step"),
        ("between the chunks' actions", "between goals, after the control core"),
    ):
        names = list(line["overlapped"])
        for offset, kind in ((-0.2, "rms"), (0.2, "max")):
            bars = axes.bar(
                np.arange(len(names)) + offset,
                [line["overlapped"][name][f"{key}_{kind}"] for name in names],
                0.38,
                label=kind,
            )
            axes.bar_label(bars, fmt="%.1f", fontsize=8)
        axes.set(
            xticks=np.arange(len(names)),
            xticklabels=names,
            ylabel="joint velocity step, degrees/s",
            title=f"hand-over: {title}",
        )
        axes.margins(y=0.2)
        axes.legend(loc="upper center", ncols=2)
    figure.savefig(path, dpi=100)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m vla_edge.benchmarks.handover_motion",
        description="velocity steps at hand-over, and both kinds of host",
    )
    parser.add_argument("--bundle", type=Path, required=True, help="of the reaching task")
    parser.add_argument("--episodes", type=int, default=20, help="of the fast host, for each policy")
    parser.add_argument("--slow-episodes", type=int, default=4, help="of the slow host")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="folder for handover.png and .json")
    options = parser.parse_args(argv)
    if min(options.episodes, options.slow_episodes) < 1:
        raise ConfigError("--episodes and --slow-episodes must be at least 1")
    options.out.mkdir(parents=True, exist_ok=True)
    bundle, engine = open_bundle(options.bundle), load_engine("ort", EngineOptions(threads=options.threads))
    seeds = range(FIRST_SEED, FIRST_SEED + options.episodes)
    line: dict[str, Any] = {
        "bundle": bundle.digest,
        "commit": commit(),
        "unit": "degrees/s",
        "fast_delay_ticks": FAST_TICKS,
        "slow_delay_ticks": SLOW_TICKS,
    }
    line["overlapped"] = {policy.value: overlapped(bundle, engine, policy, seeds) for policy in HandOver}
    line["plan_then_move"] = slow = plan_then_move(
        bundle, engine, range(FIRST_SEED, FIRST_SEED + options.slow_episodes)
    )
    print(
        f"ceiling: velocity changes by {line['overlapped']['replace']['goal_step_elsewhere_rms']:.1f} degrees/s "
        "(RMS) from tick to tick where no chunk takes over"
    )
    for name, row in line["overlapped"].items():
        print(
            f"{name:<8} {row['handovers']} hand-overs, actions {row['action_step_rms']:.1f} RMS "
            f"{row['action_step_max']:.1f} max, goals {row['goal_step_rms']:.1f} RMS "
            f"{row['goal_step_max']:.1f} max degrees/s; reached {row['reached']} of {row['episodes']}"
        )
    print(
        f"3 s a chunk: {slow['rhythm']}, moving {slow['share_in_state_moving']:.0%} of the time (expected "
        f"{slow['expected_share']:.0%}), "
        f"latched {slow['latched_ticks']} ticks, reached {slow['reached']} of {slow['episodes']}"
    )
    draw(line, options.out / "handover.png")
    write_json(options.out / "handover.json", line)
    print(json.dumps(line))
    if slow["latched_ticks"]:
        raise CheckFailed(
            f"the slow host latched HOLD for {slow['latched_ticks']} ticks; its patience must be 3 inferences at least"
        )
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
