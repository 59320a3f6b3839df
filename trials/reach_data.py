# SPDX-License-Identifier: Apache-2.0
"""Record the simulated task "reach the COLOUR cube" as a LeRobot v3.0 dataset.

    python -m vla_edge.trials.reach_data --out DIR --scenes 1200 [--arm so101]

An episode is one scene. Besides state, action and pictures each frame carries the scripted expert's next 50 commands
for every instruction (`expert.red`, `expert.green`, `expert.blue`: float32 [50, joints]).
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import track

from vla_edge.camera_names import PREFIX
from vla_edge.command_line import count, folder_to_write, run_command
from vla_edge.command_parser import CommandParser
from vla_edge.errors import ConfigError
from vla_edge.lerobot_data.layout import Feature
from vla_edge.lerobot_data.writer import DatasetWriter
from vla_edge.robot.arm_description import DEFAULT_ARM
from vla_edge.robot.sim.mjcf import CAMERAS, CUBE_COLOURS
from vla_edge.robot.sim.scene import BODIES, random_scene
from vla_edge.robot.sim.simulated_arm import SimOptions, SimulatedArm
from vla_edge.trials.reach_expert import CHUNK, CONTROL_HZ, INSTRUCTIONS, ReachEpisode, record_episode

EVERY = 3
"""An observation at every third frame of 30 Hz: the dataset's own rate is 10 Hz."""

_arm: SimulatedArm | None = None


@dataclass(frozen=True, slots=True)
class ReachRecording:
    """scenes × observations frames, pictures of height × width; seeds count up from first_seed. every: frames of the
    30 Hz control from one observation to the next."""

    scenes: int = 1200
    observations: int = 24
    height: int = 96
    width: int = 128
    first_seed: int = 1_000_000
    processes: int = 2
    arm: str = DEFAULT_ARM
    every: int = EVERY


def record_reach_dataset(target: Path, recording: ReachRecording) -> None:
    """Write the dataset to `target`, which must not exist. DatasetError, CameraError, ConfigError."""
    if recording.scenes < 1 or recording.observations < 2:
        raise ConfigError(f"{recording.scenes} scenes of {recording.observations} observations; give at least 1 and 2")
    body = BODIES[recording.arm]
    joints = [f"{name}.pos" for name in body.joints]
    features = {
        "observation.state": Feature("float32", (len(joints),), joints),
        "action": Feature("float32", (len(joints),), joints),
        **{f"expert.{colour}": Feature("float32", (CHUNK, len(joints)), None) for colour in CUBE_COLOURS},
        **{
            f"{PREFIX}{camera}": Feature(
                "video", (recording.height, recording.width, 3), ["height", "width", "channels"]
            )
            for camera in CAMERAS
        },
    }
    with DatasetWriter(target, CONTROL_HZ // recording.every, features, robot_type=body.robot_type) as writer:
        for episode in track(_episodes(recording), "recording scenes", recording.scenes, console=Console(stderr=True)):
            for index, which in enumerate(episode.target):
                chunks = episode.chunks[index]
                values = {"observation.state": episode.state[index], "action": chunks[which, 0]}
                values |= {f"expert.{colour}": chunks[i] for i, colour in enumerate(CUBE_COLOURS)}
                values |= {f"{PREFIX}{camera}": pictures[index] for camera, pictures in episode.images.items()}
                writer.add_frame(values, INSTRUCTIONS[which])
            writer.save_episode()


def _episodes(recording: ReachRecording) -> Iterator[ReachEpisode]:
    """The episodes in the order of their seeds, rendered in `processes` processes."""
    seeds = range(recording.first_seed, recording.first_seed + recording.scenes)
    context = multiprocessing.get_context("spawn")
    with context.Pool(recording.processes, _start, (recording,)) as pool:
        yield from pool.imap(_record, [(seed, recording.observations, recording.every) for seed in seeds], chunksize=4)


def _start(recording: ReachRecording) -> None:
    global _arm
    scene = random_scene(0, BODIES[recording.arm])
    _arm = SimulatedArm(scene, SimOptions(recording.height, recording.width))


def _record(work: tuple[int, int, int]) -> ReachEpisode:
    assert _arm is not None
    return record_episode(_arm, *work)


def main(argv: Sequence[str]) -> int:
    default = ReachRecording()
    parser = CommandParser(
        prog="python -m vla_edge.trials.reach_data", description="record the reaching task as a dataset"
    )
    parser.add_argument("--out", type=folder_to_write, required=True, help="new folder")
    parser.add_argument("--scenes", type=count, default=default.scenes)
    parser.add_argument("--observations", type=count, default=default.observations, help="per scene")
    parser.add_argument(
        "--every", type=count, default=default.every, help="control frames from one observation to the next"
    )
    parser.add_argument("--processes", type=count, default=default.processes)
    parser.add_argument("--arm", choices=sorted(BODIES), default=default.arm, help="which arm reaches")
    arguments = parser.parse_args(argv)
    recording = ReachRecording(
        arguments.scenes,
        arguments.observations,
        processes=arguments.processes,
        arm=arguments.arm,
        every=arguments.every,
    )
    record_reach_dataset(arguments.out, recording)
    print(f"{arguments.out}: {arguments.scenes} scenes, {arguments.scenes * arguments.observations} frames")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
