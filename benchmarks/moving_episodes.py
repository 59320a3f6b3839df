# SPDX-License-Identifier: Apache-2.0
"""Episodes with still and moving phases, recorded with the simulated arm: what the cache benchmarks and gate
calibration look at.

    python -m vla_edge.benchmarks.moving_episodes [--arm so101] --out DATASET

An episode: rest 3 s, reach for the named cube 3 s, rest above it 3 s, back 3 s, rest 3 s. In the first and the last
rest (in other phases, where a caller says so) somebody moves a cube by 2 to 6 cm, the named one every other time; the
arm's instruction stays. Besides state,
action and pictures each frame says whether the arm moves (`moving`) and how many cubes were moved so far (`moves`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vla_edge.camera_names import PREFIX
from vla_edge.command_line import count, folder_to_write, run_command, whole
from vla_edge.command_parser import CommandParser
from vla_edge.lerobot_data.layout import Feature
from vla_edge.lerobot_data.writer import DatasetWriter
from vla_edge.robot.sim.bodies.koch_body import KOCH
from vla_edge.robot.sim.mjcf import CAMERAS, CUBE_COLOURS
from vla_edge.robot.sim.scene import BODIES, WIDEST_RAD, random_scene
from vla_edge.robot.sim.simulated_arm import SimOptions, SimulatedArm
from vla_edge.trials.reach_expert import expert_chunk, expert_goal, instruction
from vla_edge.trials.reach_task import other_colour, wanted_colour

HZ, FPS = 30, 10
"""Ticks a second, and recorded frames a second unless told otherwise."""
PHASE_S = 3.0
RESTS = (0, 4)
"""The phases of rest before and after the way there and back: 1 and 3 are motion."""
MOVING_RAD_S = 0.03
"""A joint faster than this: the arm moves."""
MOVED_M = (0.02, 0.06)
CLEAR_M = 0.05
"""Between the middles of two cubes after a move: no corner touches. A scene's own distance would leave some no way out.
"""


@dataclass(frozen=True)
class PhaseFrame:
    """images: camera -> uint8 [h, w, 3]; state, action float32 [6] joint units; moves: cubes moved since the start."""

    images: dict[str, NDArray[np.uint8]]
    state: NDArray[np.float32]
    action: NDArray[np.float32]
    task: str
    moving: bool
    moves: int


def move_cube(arm: SimulatedArm, colour: str, rng: np.random.Generator, away_m: tuple[float, float] = MOVED_M) -> float:
    """Put one cube somewhere else, so far away, within reach and clear of the others; how far, in metres."""
    configuration = arm.configuration
    places = {name: int(arm.model.joint(f"{name}_cube").qposadr[0]) for name in CUBE_COLOURS}
    start = places[colour]
    others = np.array([configuration[at : at + 2] for name, at in places.items() if name != colour])
    while True:
        distance, way = rng.uniform(*away_m), rng.uniform(-np.pi, np.pi)
        place = configuration[start : start + 2] + distance * np.array([np.cos(way), np.sin(way)])
        within = (
            arm.body.near_m <= np.hypot(*place) <= arm.body.far_m and abs(np.arctan2(place[1], place[0])) <= WIDEST_RAD
        )
        if within and np.hypot(*(others - place).T).min() >= CLEAR_M:
            configuration[start : start + 2] = place
            arm.show(configuration)
            return float(distance)


def turn_cube(arm: SimulatedArm, colour: str, degrees: float) -> None:
    """Put one cube elsewhere on its circle about the base."""
    configuration, angle = arm.configuration, np.radians(degrees)
    start = int(arm.model.joint(f"{colour}_cube").qposadr[0])
    x, y = configuration[start : start + 2]
    configuration[start : start + 2] = x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)
    arm.show(configuration)


def phase_frames(
    arm: SimulatedArm, seed: int, phase_s: float = PHASE_S, fps: int = FPS, moved_in: tuple[int, ...] = RESTS
) -> Iterator[PhaseFrame]:
    """One episode, a frame at a time; the same for the same seed and arm options. fps: a divisor of HZ; moved_in: the
    phases, of 0 to 4, in which a cube is moved."""
    rng, scene, colour = np.random.default_rng([seed, 11]), random_scene(seed, arm.body), wanted_colour(seed)
    arm.reset(scene)
    home, command = arm.goals, arm.goals
    ticks = round(phase_s * HZ)
    moved_at = [phase * ticks + int(rng.integers(ticks // 3, 2 * ticks // 3)) for phase in moved_in]
    for tick in range(5 * ticks):
        phase = tick // ticks
        if tick in moved_at:
            move_cube(arm, colour if (seed + phase) % 2 == 0 else other_colour(seed), rng)
        if tick % (HZ // fps) == 0:
            yield PhaseFrame(
                {camera: arm.render(camera) for camera in CAMERAS},
                arm.body.units(arm.positions).astype(np.float32),
                arm.body.units(command).astype(np.float32),
                instruction(colour),
                bool(np.abs(arm.velocities).max() > MOVING_RAD_S),
                sum(at <= tick for at in moved_at),
            )
        if phase in (1, 3):
            goal = expert_goal(arm, arm.scene, colour) if phase == 1 else home
            command = expert_chunk(command, goal, 1)[0]
            arm.set_goals(command)
        arm.step(1 / HZ)


def record_phases(target: Path, arm: SimulatedArm, seeds: range, fps: int = FPS) -> None:
    """Write one episode a seed as a LeRobot v3.0 dataset; `target` must not exist."""
    joints = [f"{name}.pos" for name in arm.body.joints]
    size = (arm.options.height, arm.options.width, 3)
    features = {
        "observation.state": Feature("float32", (len(joints),), joints),
        "action": Feature("float32", (len(joints),), joints),
        "moving": Feature("float32", (1,), None),
        "moves": Feature("float32", (1,), None),
        **{f"{PREFIX}{camera}": Feature("video", size, ["height", "width", "channels"]) for camera in CAMERAS},
    }
    with DatasetWriter(target, fps, features, robot_type=arm.body.robot_type) as writer:
        for seed in seeds:
            for frame in phase_frames(arm, seed, fps=fps):
                values = {
                    "observation.state": frame.state,
                    "action": frame.action,
                    "moving": np.array([frame.moving], np.float32),
                    "moves": np.array([frame.moves], np.float32),
                }
                writer.add_frame(
                    values | {f"{PREFIX}{camera}": picture for camera, picture in frame.images.items()}, frame.task
                )
            writer.save_episode()


def main(argv: Sequence[str]) -> int:
    parser = CommandParser(
        prog="python -m vla_edge.benchmarks.moving_episodes", description="record episodes for gate calibration"
    )
    parser.add_argument("--out", type=folder_to_write, required=True, help="new dataset")
    parser.add_argument("--arm", choices=sorted(BODIES), default=KOCH.name, help="whose arm moves")
    parser.add_argument("--episodes", type=count, default=20)
    parser.add_argument("--first-seed", type=whole, default=200_000)
    parser.add_argument("--fps", type=int, choices=(10, 15, 30), default=FPS, help="frames a second")
    options = parser.parse_args(argv)
    arm = SimulatedArm(random_scene(0, BODIES[options.arm]), SimOptions(96, 128))
    seeds = range(options.first_seed, options.first_seed + options.episodes)
    record_phases(options.out, arm, seeds, fps=options.fps)
    arm.close()
    print(f"{options.out}: {options.episodes} episodes")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
