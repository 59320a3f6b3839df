# SPDX-License-Identifier: Apache-2.0
"""From one chunk to the next: how does the arm move, is it still at its target, and how soon does it react?

    python -m vla_edge.benchmarks.handover_motion --bundle BUNDLE --out DIR

Lockstep on the simulated arm, control at 90 and at 30 Hz, actions at 30 a second, the same scenes for every way. An
episode of 11 s: the arm reaches for the named cube and rests above it until 6 s; then the cube is turned by 2 degrees
about the base, and 2.5 s later put 4 to 10 cm away. Two kinds of host: 67 ms a chunk (overlapping), and 3 s (plan, then
move). Motion is looked at 90 times a second whatever the control rate.

Ceiling of the reaction: a plan every 333 ms that takes 67 has its first action on average 250 ms after a change.
Beside the ways of this runtime stands LeRobot's: a queue of the chunk's actions, sent 30 times a second as they are, a
new plan when it is empty, fresh noise for each.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from vla_edge.benchmarks.bench_report import bench_parser, write_result
from vla_edge.benchmarks.moving_episodes import move_cube, turn_cube
from vla_edge.bundle import Bundle, open_bundle
from vla_edge.command_line import count, run_command
from vla_edge.engines.engine import Engine, EngineOptions, load_engine
from vla_edge.errors import CheckFailed
from vla_edge.robot.sim.scene import random_scene
from vla_edge.robot.sim.simulated_arm import SimulatedArm
from vla_edge.runtime.control.control_settings import ControlRate
from vla_edge.runtime.control.handover import HandOver, HandOverOptions, pace_of
from vla_edge.runtime.inference.session import Noise, SessionOptions
from vla_edge.trials.evaluate_reach import mcnemar
from vla_edge.trials.lockstep import LockstepOptions, observe, options_at
from vla_edge.trials.reach_expert import instruction
from vla_edge.trials.reach_task import REACHED_M, SessionPlanner, new_arm, reach, wanted_colour

Floats = NDArray[np.float64]

FIRST_SEED = 330_000
HZ, FPS = 90, 30
"""Looks at the arm a second, called ticks here; actions a second."""
DELAY, REPLAN, SLOW = 2, 10, 90
"""Actions: 67 ms and 3 s a chunk; a new plan every third of a second."""
REST_TICKS, TURN_TICK, MOVE_TICK, TICKS = 270, 540, 765, 990
"""The last 3 s before TURN_TICK are rest; the cube is turned at TURN_TICK, and put elsewhere at MOVE_TICK, or up to a
plan's distance later."""
TURN_DEG = 2.0
FAR_M = (0.04, 0.10)
BODY = slice(0, 5)
"""Joints in degrees; the gripper has other units."""
STILL_DEG, SUCCESS_POINTS, LATER_MS = 1.5, 0.02, 1000 / FPS + 0.1
"""What the default way must keep against `replace` with fresh noise: tremble, success, median reaction (an action)."""


@dataclass(frozen=True, slots=True)
class Way:
    """How chunks follow each other; hz: control ticks a second. direct: LeRobot's queue, no guard and no hand-over."""

    name: str
    handover: HandOverOptions = HandOverOptions()
    noise: Noise = Noise.KEPT
    hz: int = HZ
    direct: bool = False


KINDS = (
    Way("replace, fresh noise", HandOverOptions(HandOver.REPLACE), Noise.FRESH),
    Way("inpaint all rows, fresh noise", HandOverOptions(HandOver.INPAINT), Noise.FRESH),
    Way("replace, kept noise", HandOverOptions(HandOver.REPLACE)),
    Way("blend, kept noise", HandOverOptions(HandOver.BLEND)),
    Way("inpaint 10 rows, kept noise", HandOverOptions(HandOver.INPAINT, 10)),
    Way("inpaint all rows, kept noise", HandOverOptions(HandOver.INPAINT)),
)
BEFORE = "replace, fresh noise, 90 Hz"
WAYS = (
    Way("LeRobot's queue, sent directly", HandOverOptions(HandOver.REPLACE), Noise.FRESH, FPS, direct=True),
    *(replace(kind, name=f"{kind.name}, {hz} Hz", hz=hz) for hz in (FPS, HZ) for kind in KINDS),
)


@dataclass(frozen=True, slots=True)
class Motion:
    """One episode. positions, goals: float64 [ticks, 6] joint units; tips: [ticks, 3] m; target: [3] m, of the named
    cube's first place; turned, moved: ticks at which the cube was; degrees: of the turn; clamped: share of control's
    ticks in which the guard changed the goal."""

    positions: Floats
    goals: Floats
    tips: Floats
    target: Floats
    turned: int
    moved: int
    degrees: float
    clamped: float

    @property
    def error_m(self) -> float:
        """Of the tip in the last sixth of a second before the first change."""
        return float(np.linalg.norm(self.tips[TURN_TICK - HZ // 6 : TURN_TICK] - self.target, axis=1).mean())

    @property
    def settling_s(self) -> float:
        """From when on the tip stays near the target."""
        outside = np.flatnonzero(np.linalg.norm(self.tips[:TURN_TICK] - self.target, axis=1) > REACHED_M)
        return float(outside[-1] + 1) / HZ if len(outside) else 0.0

    @property
    def tremble_deg(self) -> float:
        """Of the joint that moves most, peak to peak, in the rest before the first change."""
        return float(np.ptp(self.positions[TURN_TICK - REST_TICKS : TURN_TICK, BODY], axis=0).max())

    @property
    def jerk(self) -> float:
        """RMS of the worst joint's third difference, degrees/s³, until the first change."""
        return float(rms(np.diff(self.positions[:TURN_TICK, BODY], n=3, axis=0) * HZ**3).max())

    @property
    def shaking(self) -> float:
        """RMS of the worst joint's acceleration above 12 Hz, degrees/s², until the first change."""
        return float(above(np.diff(self.positions[:TURN_TICK, BODY], n=2, axis=0) * HZ**2, 12.0).max())

    @property
    def followed(self) -> float:
        """Share of the turn that the pan joint's mean goal made."""
        before = self.goals[self.turned - HZ * 3 // 2 : self.turned, 0].mean()
        return float((self.goals[self.moved - HZ * 3 // 2 : self.moved, 0].mean() - before) / self.degrees)

    @property
    def reaction_ms(self) -> float:
        """From the move to the first goal that is half way to where they end, and stays beyond."""
        return half_way(self.goals[:, BODY], self.moved) * 1e3 / HZ


def rms(values: Floats) -> Floats:
    """Over the first axis."""
    return np.asarray(np.sqrt(np.mean(np.square(values), axis=0)))


def above(values: Floats, hz: float) -> Floats:
    """RMS of what is faster than `hz` in values [n, joints] taken HZ times a second."""
    spectrum = np.fft.rfft(values, axis=0)
    spectrum[np.fft.rfftfreq(len(values), 1 / HZ) <= hz] = 0
    return rms(np.fft.irfft(spectrum, len(values), axis=0))


def half_way(goals: Floats, change: int) -> int:
    """Ticks from `change` until goals [n, joints] have made half the way from their mean in the second before it to
    their mean in the last second, for good."""
    before, after = goals[change - HZ : change].mean(0), goals[-HZ:].mean(0)
    share = (goals[change:] - before) @ (after - before) / max(1e-9, float((after - before) @ (after - before)))
    short = np.flatnonzero(share[:-HZ] < 0.5)
    return int(short[-1]) + 1 if len(short) else 0


def episode(arm: SimulatedArm, planner: SessionPlanner, seed: int, way: Way, ticks: int = TICKS) -> Motion:
    """One scene under one way. ticks: TURN_TICK where no change is to be seen."""
    rng, colour = np.random.default_rng([seed, 12]), wanted_colour(seed)
    turned, moved = (tick + HZ // FPS * int(rng.integers(REPLAN)) for tick in (TURN_TICK, MOVE_TICK))
    degrees = TURN_DEG if seed % 2 else -TURN_DEG
    joints = len(arm.body.joints)
    positions, goals, tips = np.empty((ticks, joints)), np.empty((ticks, joints)), np.empty((ticks, 3))

    def watch(arm: SimulatedArm, tick: int) -> None:
        positions[tick], goals[tick] = arm.body.units(arm.positions_now), arm.body.units(arm.goals)
        tips[tick] = arm.tip
        if tick == turned:
            turn_cube(arm, colour, degrees)
        if tick == moved:
            move_cube(arm, colour, rng, FAR_M)

    options = options_at(
        ControlRate(way.hz, FPS), planner.sizes, DELAY, REPLAN,
        seconds=ticks / HZ, handover=way.handover, watch=watch, watches=HZ // way.hz,
    )  # fmt: skip
    clamped = 0.0
    if way.direct:
        send_directly(arm, planner, seed, options)
    else:
        clamped = reach(arm, planner, seed, colour, options).result.clamped / (ticks * way.hz / HZ)
    return Motion(positions, goals, tips, random_scene(seed).target(colour), turned, moved, degrees, clamped)


def send_directly(arm: SimulatedArm, planner: SessionPlanner, seed: int, options: LockstepOptions) -> None:
    """LeRobot's loop: actions of a queue go to the servos as they are; when it is empty, the arm waits for a plan."""
    assert options.watch is not None
    arm.reset(random_scene(seed))
    planner.reset(seed, options)
    queue, waits = np.empty((0, len(arm.body.joints))), 0
    for tick in range(round(options.seconds * FPS)):
        if len(queue) == 0:
            now_ns = tick * 10**9 // FPS
            task = instruction(wanted_colour(seed))
            queue = planner.plan(observe(arm, tick, now_ns, task, options.sizes), now_ns).astype(np.float64)
            waits = options.delay_ticks
        if waits:
            waits -= 1
        else:
            arm.set_goals(arm.body.radians(queue[0]))
            queue = queue[1:]
        for part in range(options.watches):
            arm.step(1 / HZ)
            options.watch(arm, tick * options.watches + part)


def measure(bundle: Bundle, engine: Engine, way: Way, seeds: range) -> list[Motion]:
    """Every scene under one way."""
    planner = SessionPlanner(bundle, engine, SessionOptions(noise=way.noise))
    arm = new_arm(LockstepOptions(planner.sizes))
    motions = [episode(arm, planner, seed, way) for seed in track(seeds, way.name, console=Console(stderr=True))]
    arm.close()
    return motions


def reach_row(motions: Sequence[Motion], before: Sequence[Motion] | None) -> dict[str, Any]:
    """How the scenes of one way end and rest; `before`: the same scenes under another one, to compare in pairs."""
    reached = [motion.error_m <= REACHED_M for motion in motions]
    row: dict[str, Any] = {
        "episodes": len(motions),
        "success": float(np.mean(reached)),
        "settling_s_p50": float(np.median([m.settling_s for m, good in zip(motions, reached) if good] or [np.nan])),
        "error_cm": float(np.mean([motion.error_m for motion in motions]) * 100),
        "tremble_deg_p50": float(np.median([motion.tremble_deg for motion in motions])),
        "tremble_deg_p90": float(np.quantile([motion.tremble_deg for motion in motions], 0.9)),
    }
    if before is not None:
        row["pairs"] = mcnemar([motion.error_m <= REACHED_M for motion in before], reached)
    return row


def row_of(motions: Sequence[Motion], before: Sequence[Motion] | None) -> dict[str, Any]:
    """The same, and how the arm moves and what it does after a change."""
    return {
        **reach_row(motions, before),
        "jerk_deg_s3": float(np.mean([motion.jerk for motion in motions])),
        "above_12_hz_deg_s2": float(np.mean([motion.shaking for motion in motions])),
        "reaction_ms_p50": float(np.median([motion.reaction_ms for motion in motions])),
        "followed_p50": float(np.median([motion.followed for motion in motions])),
        "followed_quartiles": np.quantile([motion.followed for motion in motions], [0.25, 0.75]).tolist(),
        "unclamped": 1 - float(np.mean([motion.clamped for motion in motions])),
    }


def plan_then_move(bundle: Bundle, engine: Engine, seeds: range) -> dict[str, Any]:
    """The slow host: 3 s a chunk."""
    planner = SessionPlanner(bundle, engine)
    moved: list[bool] = []
    last: list[Floats] = []

    def watch(arm: SimulatedArm, tick: int) -> None:
        goals = arm.goals
        if last:
            moved.append(not np.array_equal(goals, last.pop()))
        last.append(goals)

    options = options_at(
        ControlRate(HZ, FPS), planner.sizes, SLOW, SLOW, seconds=24.0, plan_then_move=True, watch=watch
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
    expected = pace_of(SLOW / FPS, SLOW / FPS, bundle.manifest.policy.n_action_steps, 1 / FPS)
    return {
        "episodes": len(seeds), "reached": reached, "rhythm": expected.rhythm.value, "latched_ticks": latched,
        "share_in_state_moving": states["moving"] / states.total(), "share_with_a_moving_goal": float(np.mean(moved)),
        "expected_share": expected.motion_share, "states": dict(states), "chunks": dict(chunks),
    }  # fmt: skip


COLUMNS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "scenes": lambda row: f"{row['episodes']}",
    "reached": lambda row: f"{row['success']:.1%}",
    "settles in, p50": lambda row: f"{row['settling_s_p50']:.2f} s",
    "tip error": lambda row: f"{row['error_cm']:.2f} cm",
    "jerk, RMS": lambda row: f"{row['jerk_deg_s3'] / 1e3:.1f} k°/s³",
    "above 12 Hz": lambda row: f"{row['above_12_hz_deg_s2']:.0f} °/s²",
    "tremble at rest, p50 (p90)": lambda row: f"{row['tremble_deg_p50']:.1f}° ({row['tremble_deg_p90']:.1f}°)",
    "half way after a move, p50": lambda row: f"{row['reaction_ms_p50']:.0f} ms",
    "of a 2° turn followed, p50 (quartiles)": lambda row: (
        f"{row['followed_p50']:.2f} ({row['followed_quartiles'][0]:.2f}–{row['followed_quartiles'][1]:.2f})"
    ),
    "ticks unclamped": lambda row: f"{row['unclamped']:.0%}",
}


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = [f"| hand-over | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    return "\n".join(
        [*lines, *(f"| {name} | {' | '.join(show(row) for show in COLUMNS.values())} |" for name, row in rows.items())]
    )


def missed(before: Mapping[str, Any], default: Mapping[str, Any]) -> list[str]:
    """What the default way does not keep, in words."""
    later = default["reaction_ms_p50"] - before["reaction_ms_p50"]
    return [
        text
        for bad, text in (
            (default["tremble_deg_p90"] > STILL_DEG, f"it trembles by {default['tremble_deg_p90']:.1f}° (p90)"),
            (default["success"] < before["success"] - SUCCESS_POINTS, f"it reaches {default['success']:.1%}"),
            (later > LATER_MS, f"it reacts {later:.0f} ms later"),
        )
        if bad
    ]


def main(argv: Sequence[str]) -> int:
    about = "motion from chunk to chunk, stillness, reaction, and both kinds of host"
    parser = bench_parser("handover_motion", about, "of the reaching task")
    parser.add_argument("--episodes", type=count, default=200, help="of the fast host, for each way")
    parser.add_argument(
        "--ways",
        choices=("all", "default"),
        default="all",
        help="default: the default at both rates, and what it is judged by",
    )
    parser.add_argument("--slow-episodes", type=count, default=4, help="of the slow host")
    options = parser.parse_args(argv)
    bundle, engine = open_bundle(options.bundle), load_engine("ort", EngineOptions(threads=options.threads))
    seeds = range(FIRST_SEED, FIRST_SEED + options.episodes)
    defaults = [way.name for way in WAYS if replace(way, hz=HZ) == Way(way.name, noise=SessionOptions().noise)]
    asked = [way for way in WAYS if options.ways == "all" or way.name in (BEFORE, *defaults)]
    motions = {way.name: measure(bundle, engine, way, seeds) for way in asked}
    rows = {name: row_of(found, motions[BEFORE]) for name, found in motions.items()}
    slow = plan_then_move(bundle, engine, range(FIRST_SEED, FIRST_SEED + options.slow_episodes))
    default = defaults[-1]
    facts = {
        "scenes": f"seeds {seeds[0]} to {seeds[-1]}, {FPS} actions a second, delay {DELAY}, a plan every {REPLAN}",
        "default": default,
        "bundle": bundle.digest,
    }
    slowly = (
        f"3 s a chunk: {slow['rhythm']}, moving {slow['share_in_state_moving']:.0%} of the time (expected "
        f"{slow['expected_share']:.0%}), latched {slow['latched_ticks']} ticks, reached {slow['reached']} of "
        f"{slow['episodes']}"
    )
    head = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    text = f"# From one chunk to the next\n\n{head}\n\n{table(rows)}\n\n{slowly}\n"
    write_result(options.out, "handover", {**facts, "overlapped": rows, "plan_then_move": slow}, text)
    print(text)
    print(json.dumps({"default": default, **rows[default]}))
    failed = missed(rows[BEFORE], rows[default])
    if slow["latched_ticks"]:
        failed.append(f"the slow host latched HOLD for {slow['latched_ticks']} ticks")
    if failed:
        raise CheckFailed(f"{default}: {'; '.join(failed)}; limits are {STILL_DEG}°, {SUCCESS_POINTS:.0%}, an action")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
