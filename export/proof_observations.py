# SPDX-License-Identifier: Apache-2.0
"""The observations an export is proved on: seeded synthetic ones, and frames of a recorded dataset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vla_edge.bundle import CameraSpec
from vla_edge.calibration.precision.synthetic import blocks
from vla_edge.errors import ConfigError, DatasetError
from vla_edge.lerobot_data.tolerance import TOLERANCE_S
from vla_edge.policies.families import Policy
from vla_edge.policies.features import ACTION, STATE

if TYPE_CHECKING:
    from vla_edge.lerobot_data.reader import Dataset

TASKS = ("Place the bracelet into the box", "Move the arm slowly back to where it came from, please")

NUMBERED = "Put 12 cubes into box 3"
"""A task with numbers, whose digits tokenizers split in more than one way."""

RECORDED_FRAMES = 2
"""Frames taken from a dataset, spread over its length: each costs a whole inference on both sides."""


@dataclass(frozen=True)
class Case:
    """One observation with its noise float32 [C, A]; keys as LeRobot names them before `rename_map`. A policy without
    a tokenizer gets no task."""

    name: str
    observation: Mapping[str, Any]
    noise: NDArray[np.float32]


@dataclass(frozen=True)
class Recording:
    """A dataset to take observations from. `cameras`: the policy's camera (before `rename_map`) → the dataset's, for
    those whose names differ."""

    path: Path
    cameras: Mapping[str, str]
    tolerance_s: float = TOLERANCE_S


def synthetic_cases(policy: Policy, cameras: tuple[CameraSpec, ...], masks_cameras: bool) -> Iterator[Case]:
    """All cameras, then the first one missing, or other values where there is only one or none may be missing."""
    variants: list[tuple[str, str | None]] = [("all cameras", None), ("another observation", None)]
    if len(cameras) > 1 and masks_cameras:
        variants[1] = (f"without {cameras[0].name}", cameras[0].name)
    for seed, (name, missing) in enumerate(variants):
        generator = np.random.default_rng(seed)
        observation: dict[str, Any] = {} if policy.settings.tokenizer is None else {"task": TASKS[seed]}
        for camera in cameras:
            picture = blocks(generator, camera.height, camera.width)
            if camera.name != missing:
                observation[camera.source] = picture
        observation[STATE] = _state(policy, generator)
        yield Case(name, observation, _noise(policy, generator))


def camera_specs(
    policy: Policy, recording: Recording | None, placeholder: tuple[int, int] | None
) -> tuple[CameraSpec, ...]:
    """The policy's cameras with the size their pictures had in the data: the recording's where there is one, else
    config.json's, unless that is `placeholder`, which says nothing of the data.

    DatasetError, ConfigError: the recording has none of the cameras, or not the one it is mapped to.
    """
    known = any((camera.height, camera.width) != placeholder for camera in policy.settings.cameras)
    specs = [CameraSpec(item.name, item.source, item.height, item.width, known) for item in policy.settings.cameras]
    specs = [replace(item, seen=known and not item.placeholder) for item in specs]
    if recording is None:
        return tuple(specs)
    from vla_edge.lerobot_data.observations import cameras_in

    with _open(recording) as dataset:
        found = cameras_in(dataset, specs, recording.cameras, all_of_them=False)
        shapes = {source: dataset.features[key].shape for source, key in found.items()}
    for index, item in enumerate(specs):
        if item.source in found:
            (height, width, _), key = shapes[item.source], found[item.source]
            in_data = "" if key in (item.name, item.source) else key
            specs[index] = CameraSpec(item.name, item.source, height, width, in_data=in_data)
    return tuple(specs)


def recorded_cases(policy: Policy, cameras: tuple[CameraSpec, ...], recording: Recording) -> Iterator[Case]:
    """Frames spread over the dataset, with those cameras of the policy that it has."""
    from vla_edge.lerobot_data.observations import cameras_in

    with _open(recording) as dataset:
        sources = cameras_in(dataset, cameras, recording.cameras, all_of_them=False)
        for index in np.linspace(0, len(dataset) - 1, RECORDED_FRAMES + 2).astype(int)[1:-1]:
            sample = dataset.frame(int(index), tuple(sources.values()))
            observation: dict[str, Any] = {name: sample.images[key] for name, key in sources.items()}
            observation[STATE] = sample.values[STATE].astype(np.float32)
            if policy.settings.tokenizer is not None:
                observation["task"] = sample.task
            without = ", ".join(camera.source for camera in cameras if camera.source not in sources)
            yield Case(
                f"{recording.path.name} frame {index}{without and f' without {without}'}",
                observation,
                _noise(policy, np.random.default_rng(int(index))),
            )


def joint_names(policy: Policy, recording: Recording) -> tuple[str, ...]:
    """The dataset's names of the policy's actions; none where it has none, or another number of them. DatasetError: it
    has another number of actions."""
    from vla_edge.lerobot_data.layout import joint_names as names_of

    with _open(recording) as dataset:
        feature = dataset.features.get(ACTION)
    if feature is None or feature.shape != (policy.config.action_dim,):
        held = "no actions" if feature is None else f"actions of {list(feature.shape)}"
        raise DatasetError(
            f"{recording.path} has {held}, the policy has {policy.config.action_dim}; give the dataset it was trained "
            "on"
        )
    return names_of(feature)


def task_texts(recording: Recording) -> list[str]:
    """The instructions of the dataset, sorted."""
    with _open(recording) as dataset:
        return sorted(set(dataset.tasks.values()))


def data_fps(given: float | str | None, recording: Recording | None) -> float | None:
    """Actions a second of the policy's data: as told (a number, or a word for unknown), else the recording's; None:
    unknown. ConfigError: a number that is not the recording's."""
    if recording is None or isinstance(given, str):
        return None if isinstance(given, str) else given
    with _open(recording) as dataset:
        recorded = float(dataset.fps)
    if given not in (None, recorded):
        raise ConfigError(
            f"--fps is {given:g}, {recording.path} was recorded at {recorded:g}; leave --fps out, or give the dataset "
            "that the policy was trained on"
        )
    return recorded


def data_robot(recording: Recording | None) -> str:
    """LeRobot's name of the robot in the recording; "": unknown."""
    if recording is None:
        return ""
    with _open(recording) as dataset:
        return dataset.info.robot_type or ""


def _open(recording: Recording) -> Dataset:
    """The dataset. Its reader is imported here because its packages (extra `data`) are needed for nothing else."""
    from vla_edge.lerobot_data.reader import open_dataset

    return open_dataset(recording.path, tolerance_s=recording.tolerance_s)


def _noise(policy: Policy, generator: np.random.Generator) -> NDArray[np.float32]:
    return generator.standard_normal((policy.config.chunk_size, policy.config.max_action_dim), np.float32)


def _state(policy: Policy, generator: np.random.Generator) -> NDArray[np.float32]:
    """A state inside the training data's spread, in joint units."""
    by = policy.settings.state
    unit = generator.uniform(-1, 1, policy.config.state_dim).astype(np.float32)
    if by.mode == "MEAN_STD":
        return by.low + unit * by.high
    return by.low + (unit + 1) / 2 * (by.high - by.low)
