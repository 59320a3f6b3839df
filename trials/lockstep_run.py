# SPDX-License-Identifier: Apache-2.0
"""`vla-runtime lockstep`: one episode of a bundle on the simulated arm, on a simulated clock."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vla_edge.bundle import UNKNOWN_RATE, open_bundle
from vla_edge.command_line import answer, between, count, file_to_write, positive, whole
from vla_edge.engines.engine import EngineOptions, add_engine_arguments, load_engine
from vla_edge.errors import ConfigError
from vla_edge.robot.arm_description import DEFAULT_ARM
from vla_edge.robot.sim.render import BACKENDS
from vla_edge.robot.sim.run_video import Recording
from vla_edge.robot.sim.scene import BODIES, random_scene
from vla_edge.robot.sim.simulated_arm import SimOptions, SimulatedArm
from vla_edge.robot.sim.simulator import tip_to_cubes
from vla_edge.runtime.control.control_settings import MAX_HZ, MIN_HZ, ControlRate, candidates
from vla_edge.runtime.control.handover import add_handover_arguments, handover_of
from vla_edge.runtime.inference.cache import add_cache_argument
from vla_edge.runtime.inference.session import SessionOptions, add_flow_steps_argument, cache_mode
from vla_edge.trials.lockstep import options_at, run_lockstep
from vla_edge.trials.reach_task import SessionPlanner

_RECORD_FPS = 10
_VIEWER_SIZE = (360, 480)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--bundle", type=Path, required=True, help="folder written by export-engines, joint units in degrees"
    )
    parser.add_argument("--task", help="what the arm shall do, in a sentence; not needed where the policy reads none")
    world = parser.add_argument_group("the simulated world")
    world.add_argument("--arm", choices=sorted(BODIES), default=DEFAULT_ARM, help="the simulated arm")
    world.add_argument("--seed", type=whole, default=0, help="seed of the scene and of the noise")
    world.add_argument("--seconds", type=positive, default=6.0, help="length of the episode, in simulated time")
    world.add_argument(
        "--hz",
        type=between(MIN_HZ, MAX_HZ),
        help="control ticks a second, 6 to 100 (default: 90, as on a robot with a fast bus; 30 where the bundle does "
        "not say the data's rate)",
    )
    world.add_argument("--delay", type=count, default=2, metavar="ACTIONS", help="an inference takes this long")
    world.add_argument("--replan", type=count, default=10, metavar="ACTIONS", help="from one observation to the next")
    world.add_argument("--plan-then-move", action="store_true", help="as on a slow host: plan only while the arm rests")
    add_handover_arguments(parser)
    policy = parser.add_argument_group("how the policy is computed")
    add_engine_arguments(policy)
    add_cache_argument(policy)
    add_flow_steps_argument(policy)
    world.add_argument("--renderer", choices=sorted(BACKENDS), default="egl", help="how pictures are drawn")
    world.add_argument("--video", type=file_to_write, metavar="FILE", help="what a person sees, .mp4 or a strip .png")


def run(arguments: argparse.Namespace) -> int:
    bundle = open_bundle(arguments.bundle)
    if bundle.manifest.joint_units not in ("degrees", "unknown"):
        raise ConfigError(
            f"{arguments.bundle}: joint units are {bundle.manifest.joint_units}, the lockstep arm takes degrees; use "
            "vla-runtime run --robot sim"
        )
    if arguments.task is None and bundle.manifest.reads_text:
        raise ConfigError("no --task: say what the arm shall do, in a sentence")
    engine = load_engine(arguments.backend, EngineOptions(threads=arguments.threads))
    planner = SessionPlanner(
        bundle, engine, SessionOptions(cache_mode(arguments.cache, bundle), steps=arguments.flow_steps)
    )
    rate = ControlRate(candidates(arguments.hz, bundle.manifest.fps)[0], bundle.manifest.fps)
    if rate.fps is None:
        print(f"note: {UNKNOWN_RATE}", file=sys.stderr)
    record_every = max(1, round(rate.hz / _RECORD_FPS))
    recording = Recording(arguments.video, rate.hz / record_every) if arguments.video else None

    def watch(arm: SimulatedArm, tick: int) -> None:
        if recording is not None and tick % record_every == 0:
            recording.add(arm.render("viewer", _VIEWER_SIZE))

    options = options_at(
        rate, planner.sizes, arguments.delay, arguments.replan, seconds=arguments.seconds,
        plan_then_move=arguments.plan_then_move, watch=watch,
        handover=handover_of(arguments.handover, arguments.inpaint_horizon, bundle.manifest),
    )  # fmt: skip
    scene = random_scene(arguments.seed, BODIES[arguments.arm])
    arm = SimulatedArm(scene, SimOptions(renderer=arguments.renderer, seed=arguments.seed))
    planner.reset(arguments.seed, options)
    result = run_lockstep(arm, planner, arguments.task or "", options)
    if recording is not None:
        recording.close()
    distance = tip_to_cubes(arm)
    nearest = min(distance, key=distance.__getitem__)
    print(
        f"{sum(result.states.values())} ticks "
        f"({', '.join(f'{name} {count}' for name, count in result.states.items())}), {result.inferences} inferences, "
        f"chunks {dict(result.chunks)}, clamped {result.clamped}; the tip ended {distance[nearest] * 100:.1f} cm "
        f"from the {nearest} cube's place"
    )
    answer(
        {"states": result.states, "chunks": result.chunks, "inferences": result.inferences, "tip_to_cube_m": distance}
    )
    arm.close()
    return 0
