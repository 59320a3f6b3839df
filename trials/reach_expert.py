# SPDX-License-Identifier: Apache-2.0
"""The scripted expert of the simulated task "reach the COLOUR cube", and episodes recorded with it.

In ordinary episodes the arm's pose betrays the target and language is never learnt, so here the target switches every
few frames and the arm is put into another pose from time to time; every observation carries the expert's chunk for each
of the instructions. The expert is a recursion on the commands, so a chunk needs no physics: c ← c + min(0.13, 0.06 /
max|Δ|)·Δ at 30 Hz, Δ = goal − c in radians.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vla_edge.errors import ConfigError
from vla_edge.robot.sim.bodies.arm_body import ArmBody
from vla_edge.robot.sim.kinematics import reach_angles, tip_position
from vla_edge.robot.sim.mjcf import CAMERAS, CUBE_COLOURS
from vla_edge.robot.sim.scene import Scene, random_cubes
from vla_edge.robot.sim.simulated_arm import SimulatedArm

CONTROL_HZ = 30
CHUNK = 50
HAND_PITCH_RAD = 1.2
_APPROACH, _STEP_RAD = 0.13, 0.06
_SHORTEST, _LONGEST = 9, 41
_POSE_CHANGE = 0.35


def instruction(colour: str) -> str:
    """The task text for a cube."""
    return f"reach the {colour} cube"


INSTRUCTIONS = tuple(instruction(colour) for colour in CUBE_COLOURS)


@dataclass(frozen=True)
class ReachEpisode:
    """One scene, `n` observations.

    images: camera -> uint8 [n, height, width, 3]. state: float32 [n, joints] in joint units. target: int64 [n], the
    index into INSTRUCTIONS the arm was following. chunks: float32 [n, 3, CHUNK, joints] in joint units, the expert's
    next commands for each instruction.
    """

    images: dict[str, NDArray[np.uint8]]
    state: NDArray[np.float32]
    target: NDArray[np.int64]
    chunks: NDArray[np.float32]


def expert_goal(arm: SimulatedArm, scene: Scene, colour: str) -> NDArray[np.float64]:
    """Servo goals, float64 [joints] rad, that rest the tip above the cube, the sag of the servos made up for."""
    angles = reach_angles(arm.body, scene.target(colour), HAND_PITCH_RAD)
    if angles is None:
        raise ConfigError(f"the {colour} cube stands out of the simulated arm's reach; choose a scene of random_scene")
    pose = np.array([*angles, *arm.body.ready_rad[4:]])
    return pose + arm.sag(pose)


def expert_chunk(command: NDArray[np.float64], goal: NDArray[np.float64], length: int = CHUNK) -> NDArray[np.float64]:
    """The commands [..., length, joints] that lead from `command` [..., joints] towards `goal` [..., joints], rad."""
    out = np.empty((*np.broadcast_shapes(command.shape, goal.shape)[:-1], length, command.shape[-1]))
    current = command
    for step in range(length):
        away = goal - current
        farthest = np.maximum(np.abs(away).max(-1, keepdims=True), 1e-9)
        current = current + np.minimum(_APPROACH, _STEP_RAD / farthest) * away
        out[..., step, :] = current
    return out


def record_episode(arm: SimulatedArm, seed: int, observations: int, every: int = 3) -> ReachEpisode:
    """One episode: an observation at every `every`-th frame of 30 Hz while the expert follows switching targets."""
    rng = np.random.default_rng([seed, 4])
    pose = _free_pose(arm.body, rng)
    scene = Scene(random_cubes(rng, arm.body), tuple(pose), arm.body)
    arm.reset(scene)
    goals = np.stack([expert_goal(arm, scene, colour) for colour in CUBE_COLOURS])
    command, target, left = pose + arm.sag(pose), int(rng.integers(3)), 0
    images: dict[str, list[NDArray[np.uint8]]] = {camera: [] for camera in CAMERAS}
    states, targets, chunks = [], [], []
    for frame in range(observations * every):
        if left == 0:
            left = int(rng.integers(_SHORTEST, _LONGEST + 1))
            target = int(rng.integers(3))
            if rng.random() < _POSE_CHANGE:
                command = _free_pose(arm.body, rng)
        if frame % every == 0:
            present = command - arm.sag(command) + rng.normal(0, 0.01, len(arm.body.joints))
            arm.place(present)
            for camera in CAMERAS:
                images[camera].append(arm.render(camera))
            states.append(arm.body.units(present))
            targets.append(target)
            chunks.append(arm.body.units(expert_chunk(present + arm.sag(present), goals)))
        command = expert_chunk(command, goals[target], 1)[0]
        left -= 1
    return ReachEpisode(
        {camera: np.stack(pictures) for camera, pictures in images.items()},
        np.stack(states).astype(np.float32),
        np.array(targets),
        np.stack(chunks).astype(np.float32),
    )


WIDE_RAD = 1.1
NARROW_RAD = {"wrist_flex": 0.5, "wrist_roll": 0.15, "gripper": 0.15}
"""How far a random pose lies from the ready one at most: what carries the hand, and what turns it."""


def _free_pose(body: ArmBody, rng: np.random.Generator) -> NDArray[np.float64]:
    """A random pose, rad [joints], whose tip is over the table and in front of the base."""
    spread = [NARROW_RAD.get(name, WIDE_RAD) for name in body.joints]
    while True:
        pose = np.array(body.ready_rad) + rng.uniform(-1, 1, len(body.joints)) * spread
        pose = np.clip(pose, body.low_rad, body.high_rad)
        x, y, z = tip_position(body, pose)
        if z > 0.03 and np.hypot(x, y) > 0.07:
            return pose
