# SPDX-License-Identifier: Apache-2.0
"""Observations that a policy is measured on, made without any data: pictures of coloured blocks.

Imports nothing but what runs on the robot, so that a measured process holds nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vla_edge.bundle import Bundle
from vla_edge.contract import Frame, JointReading, Observation
from vla_edge.runtime.inference.session import noise_of
from vla_edge.runtime.inference.units import STATE, read_tables

NOISE_SEED = 20
"""Of the noise of every measurement, so that a plan is compared with float32 from the same start."""

BLOCK = 40
"""Pixels of a side of the coloured blocks."""

TASKS = ("Pick up the cube and put it into the box.", "Open the drawer.", "Stack the red block on the blue one.")


@dataclass(frozen=True)
class Measured:
    """Observations with their noise float32 [C, A]; `digest` is the sha256 of all of it, `source` says where from."""

    source: str
    observations: tuple[Observation, ...]
    noise: tuple[NDArray[np.float32], ...]
    digest: str


def synthetic(bundle: Bundle, count: int, seed: int) -> Measured:
    """Seeded observations for a policy without data: large coloured blocks under fine noise, states within the spread
    of the statistics."""
    generator = np.random.default_rng(seed)
    tables = read_tables(bundle)
    mean = tables.get(f"{STATE}.mean", np.zeros(bundle.manifest.policy.state_dim, np.float32))
    spread = tables.get(f"{STATE}.std", np.ones_like(mean))
    made = []
    for index in range(count):
        frames = {
            camera.name: Frame(camera.name, blocks(generator, camera.height, camera.width), index, index)
            for camera in bundle.manifest.cameras
        }
        positions = (mean + generator.uniform(-1, 1, mean.shape) * spread).astype(np.float32)
        made.append(Observation(index, frames, JointReading(index, index, positions), TASKS[index % len(TASKS)]))
    return measured(bundle, f"{count} synthetic observations, seed {seed}", made)


def noise_at(index: int, chunk_size: int, dimensions: int) -> NDArray[np.float32]:
    """The fixed noise [C, A] of one measurement; a shorter chunk's is the first rows of a longer one's."""
    return noise_of(NOISE_SEED, index, (chunk_size, dimensions))


def measured(bundle: Bundle, source: str, observations: Sequence[Observation]) -> Measured:
    """With the fixed noise of measurements and the digest of everything."""
    policy = bundle.manifest.policy
    noise = tuple(noise_at(index, policy.chunk_size, policy.max_action_dim) for index in range(len(observations)))
    digest = hashlib.sha256()
    for observation, draw in zip(observations, noise):
        for name in sorted(observation.frames):
            digest.update(name.encode() + observation.frames[name].image.tobytes())
        digest.update(observation.joints.positions.tobytes() + observation.task.encode() + draw.tobytes())
    return Measured(source, tuple(observations), noise, digest.hexdigest())


def blocks(generator: np.random.Generator, height: int, width: int) -> NDArray[np.uint8]:
    """A picture of large coloured blocks under fine noise, as pictures have both."""
    colours = generator.integers(0, 256, (-(-height // BLOCK), -(-width // BLOCK), 3))
    large = np.repeat(np.repeat(colours, BLOCK, axis=0), BLOCK, axis=1)[:height, :width]
    return np.clip(large + generator.integers(-20, 21, (height, width, 3)), 0, 255).astype(np.uint8)
