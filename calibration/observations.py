"""Observations that a bundle's policy is measured on: frames of a data set, or pictures of coloured blocks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vla_edge.bundle import Bundle
from vla_edge.contract import Frame, JointReading, Observation
from vla_edge.datasets.reader import Dataset, Sample, open_dataset
from vla_edge.errors import DatasetError
from vla_edge.runtime.session import noise_of
from vla_edge.runtime.units import STATE, read_tables

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


@dataclass(frozen=True)
class Split:
    """Observations for ranges and, from other episodes or frames, for the action error."""

    ranges: Measured
    held_out: Measured


def from_dataset(bundle: Bundle, path: Path, renamed: Mapping[str, str], count: int, held_out: int) -> Split:
    """Frames spread over the data set; the last fifth of its episodes (of its frames, when it has one episode) is held
    out. renamed: policy camera → data set camera where they differ. DatasetError: no camera of the policy, or too few
    frames."""
    with open_dataset(path) as dataset:
        cameras = _cameras(bundle, dataset, renamed)
        border = _border(dataset)
        if border < 1 or len(dataset) - border < 1:
            raise DatasetError(f"{path}: {len(dataset)} frames are too few to hold some out; record more")
        first = _spread(0, border, count)
        last = _spread(border, len(dataset), held_out)
        return Split(
            _measured(bundle, f"{path.name}, {len(first)} frames of 0 to {border - 1}", [_observation(dataset.frame(index, cameras), cameras) for index in first]),
            _measured(bundle, f"{path.name}, {len(last)} frames of {border} to {len(dataset) - 1}", [_observation(dataset.frame(index, cameras), cameras) for index in last]),
        )


def synthetic(bundle: Bundle, count: int, seed: int) -> Measured:
    """Seeded observations for a policy without data: large coloured blocks under fine noise, states within the spread of
    the statistics."""
    generator = np.random.default_rng(seed)
    tables = read_tables(bundle)
    mean = tables.get(f"{STATE}.mean", np.zeros(bundle.manifest.policy.state_dim, np.float32))
    spread = tables.get(f"{STATE}.std", np.ones_like(mean))
    made = []
    for index in range(count):
        frames = {camera.name: Frame(camera.name, _picture(generator, camera.height, camera.width), index, index) for camera in bundle.manifest.cameras}
        positions = (mean + generator.uniform(-1, 1, mean.shape) * spread).astype(np.float32)
        made.append(Observation(index, frames, JointReading(index, index, positions), TASKS[index % len(TASKS)]))
    return _measured(bundle, f"{count} synthetic observations, seed {seed}", made)


def _measured(bundle: Bundle, source: str, observations: Sequence[Observation]) -> Measured:
    policy = bundle.manifest.policy
    noise = tuple(noise_of(NOISE_SEED, index, (policy.chunk_size, policy.max_action_dim)) for index in range(len(observations)))
    digest = hashlib.sha256()
    for observation, draw in zip(observations, noise):
        for name in sorted(observation.frames):
            digest.update(name.encode() + observation.frames[name].image.tobytes())
        digest.update(observation.joints.positions.tobytes() + observation.task.encode() + draw.tobytes())
    return Measured(source, tuple(observations), noise, digest.hexdigest())


def _observation(sample: Sample, cameras: Mapping[str, str]) -> Observation:
    frames = {cameras[name]: Frame(cameras[name], image, 0, sample.index) for name, image in sample.images.items()}
    return Observation(sample.index, frames, JointReading(sample.index, 0, np.asarray(sample.values[STATE], np.float32)), sample.task)


def _cameras(bundle: Bundle, dataset: Dataset, renamed: Mapping[str, str]) -> dict[str, str]:
    """Data set camera → policy camera."""
    found = {}
    for camera in bundle.manifest.cameras:
        given = renamed.get(camera.name) or renamed.get(camera.source)
        key = given or next((name for name in (camera.source, camera.name) if name in dataset.camera_keys), None)
        if key is not None:
            found[key] = camera.source
    if not found:
        names = [camera.source for camera in bundle.manifest.cameras]
        raise DatasetError(f"{dataset.root}: its cameras {list(dataset.camera_keys)} are none of the policy's {names}; name them with --camera POLICY=DATASET")
    return found


def _border(dataset: Dataset) -> int:
    """First frame that is held out."""
    if len(dataset.episodes) > 1:
        return dataset.episodes[-max(1, len(dataset.episodes) // 5)].from_index
    return len(dataset) * 4 // 5


def _spread(start: int, end: int, count: int) -> list[int]:
    return sorted({int(index) for index in np.linspace(start, end - 1, min(count, end - start))})


def _picture(generator: np.random.Generator, height: int, width: int) -> NDArray[np.uint8]:
    blocks = generator.integers(0, 256, (-(-height // BLOCK), -(-width // BLOCK), 3))
    large = np.repeat(np.repeat(blocks, BLOCK, axis=0), BLOCK, axis=1)[:height, :width]
    return np.clip(large + generator.integers(-20, 21, (height, width, 3)), 0, 255).astype(np.uint8)
