# SPDX-License-Identifier: Apache-2.0
"""`vla-runtime identity`: does a bundle fit the joint calibration and a dataset? Every difference named, none mended.

The dataset's part is also an item of `vla-doctor deploy`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vla_edge.bundle import Bundle, open_bundle
from vla_edge.camera_names import nearest, short_name
from vla_edge.command_line import answer
from vla_edge.errors import CheckFailed, ConfigError, DatasetError, IdentityError
from vla_edge.lerobot_data.observations import cameras_in
from vla_edge.robot.arm_description import load_arm
from vla_edge.robot.joint_calibration import JointUnits, load_joint_calibration
from vla_edge.robot.robot_file import add_arm, add_robot_file
from vla_edge.runtime.control.identity import check_joints, units_of
from vla_edge.runtime.inference.prompt import PromptEncoder
from vla_edge.runtime.inference.units import ACTION, STATE, read_tables, remarks

if TYPE_CHECKING:
    from vla_edge.lerobot_data.reader import Dataset

SAME = 0.02
"""Share of a joint's standard deviation by which mean and std of bundle and dataset may differ: what a few episodes
more or less change."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bundle", type=Path, required=True, help="folder written by export-engines")
    add_arm(parser)
    parser.add_argument("--joints", type=Path, help="joint calibration of the arm (LeRobot's JSON)")
    parser.add_argument(
        "--dataset", type=Path, help="dataset the policy was trained on, or shall go on with: its folder, or a Hub id"
    )
    parser.add_argument(
        "--joint-units", choices=[unit.value for unit in JointUnits], help="joint units, where the bundle does not say"
    )
    add_robot_file(parser)


def run(arguments: argparse.Namespace) -> int:
    if arguments.joints is None and arguments.dataset is None:
        raise ConfigError("nothing to compare the bundle with; give --joints, --dataset, or both")
    bundle = open_bundle(arguments.bundle)
    tables = read_tables(bundle)
    found: list[str] = []
    for remark in remarks(bundle, tables):
        print(f"note: {remark}")
    if arguments.joints is not None:
        arm = load_arm(arguments.robot)
        calibration = load_joint_calibration(arguments.joints, arm)
        try:
            units = units_of(bundle, arguments.joint_units, arm, tables, calibration)[0]
            check_joints(bundle, tables, arm, calibration, units)
        except IdentityError as error:
            found.append(str(error))
    if arguments.dataset is not None:
        from vla_edge.lerobot_data.reader import open_dataset  # its packages are an extra

        with open_dataset(arguments.dataset) as dataset:
            found += [*robot_differences(bundle, tables, dataset), *task_differences(bundle, dataset.tasks.values())]
    for line in found:
        print(line)
    answer({"differences": found, "bundle": bundle.digest})
    if found:
        raise CheckFailed(f"{len(found)} differences, the first: {found[0]}")
    print(f"{arguments.bundle} fits what it was compared with")
    return 0


@dataclass(frozen=True, slots=True)
class LongTask:
    """An instruction that the policy cannot take whole. tokens: how many it has."""

    text: str
    tokens: int
    limit: int


def robot_differences(bundle: Bundle, tables: Mapping[str, NDArray[np.float32]], dataset: Dataset) -> list[str]:
    """A sentence for each way in which the dataset is not of the bundle's robot; empty when it is."""
    return [
        *shape_differences(bundle, dataset),
        *_rate_differences(bundle, dataset),
        *_statistics_differences(bundle, tables, dataset),
    ]


def shape_differences(bundle: Bundle, dataset: Dataset) -> list[str]:
    """Those of them that keep the bundle from taking the dataset's observations: joints and cameras."""
    return [*_joint_differences(bundle, dataset), *_camera_differences(bundle, dataset)]


def task_differences(bundle: Bundle, tasks: Iterable[str]) -> list[str]:
    """A sentence for each instruction that the policy's tokenizer would cut."""
    return [
        f"the instruction {task.text[:60]!r} has {task.tokens} tokens, the policy takes {task.limit}: it would be cut"
        for task in long_tasks(bundle, tasks)
    ]


def long_tasks(bundle: Bundle, tasks: Iterable[str]) -> list[LongTask]:
    """The instructions that would be cut at the policy's token width."""
    encoder = PromptEncoder(bundle, allow_truncation=True)
    limit = bundle.manifest.tokenizer.max_length
    cut = ((text, encoder.encode(text).truncated) for text in tasks if text.strip())
    return [LongTask(text, limit + excess, limit) for text, excess in cut if excess]


def _joint_differences(bundle: Bundle, dataset: Dataset) -> Iterator[str]:
    from vla_edge.lerobot_data.layout import flat_names

    names = bundle.manifest.joints
    for feature in (STATE, ACTION):
        held = dataset.features.get(feature)
        if held is None:
            yield f"the dataset has no {feature}; give one of this robot"
            continue
        theirs = [name.removesuffix(".pos").removeprefix("main_") for name in flat_names(held.names)]
        ours = [name.removesuffix(".pos").removeprefix("main_") for name in names]
        if held.shape != (len(names),):
            yield f"{feature} has {held.shape[0]} values in the dataset, the bundle has {len(names)} joints"
        elif theirs and len(theirs) != len(ours):
            yield (
                f"{feature} has {len(theirs)} names for {len(ours)} values in the dataset; nobody knows which is which"
            )
        elif theirs and theirs != ours:
            at = next(index for index, (a, b) in enumerate(zip(theirs, ours)) if a != b)
            yield (
                f"{feature}: the dataset's joint {at + 1} is {theirs[at]}, the bundle's is {ours[at]}; the order of "
                "joints differs"
            )


def _camera_differences(bundle: Bundle, dataset: Dataset) -> Iterator[str]:
    cameras = bundle.manifest.cameras
    keys = list(dataset.camera_keys)
    try:
        found = cameras_in(dataset, cameras, {}, all_of_them=False)
    except DatasetError:
        found = {}
        names = ", ".join(short_name(camera.source) for camera in cameras)
        yield f"the dataset has none of the policy's cameras {names}; {nearest(cameras[0].source, keys)}"
    for camera in cameras:
        key = found.get(camera.source)
        if key is None and camera.seen:
            yield f"the dataset has no camera {short_name(camera.source)}; {nearest(camera.source, keys)}"
        if key is None:
            continue
        height, width = dataset.features[key].shape[:2]
        if camera.seen and (height, width) != (camera.height, camera.width):
            ours = f"{camera.width}x{camera.height}"
            yield f"camera {short_name(key)} is {width}x{height} in the dataset, {ours} in the bundle"
    shared = [source for source, key in found.items() if source == key]
    in_data = [key for key in keys if key in shared]
    if shared != in_data:
        there, here = (", ".join(map(short_name, names)) for names in (in_data, shared))
        yield f"the order of cameras differs: {there} in the dataset, {here} in the bundle"


def _rate_differences(bundle: Bundle, dataset: Dataset) -> Iterator[str]:
    fps = bundle.manifest.fps
    if fps is not None and fps != dataset.fps:
        yield f"the dataset has {dataset.fps:g} frames a second, the bundle's policy moves by {fps:g} actions a second"


def _statistics_differences(
    bundle: Bundle, tables: Mapping[str, NDArray[np.float32]], dataset: Dataset
) -> Iterator[str]:
    """Also how other units show themselves: numbers of another size."""
    for feature in (STATE, ACTION):
        theirs = dataset.stats.get(feature, {})
        for name in ("mean", "std"):
            ours, held = tables.get(f"{feature}.{name}"), theirs.get(name)
            if ours is None or held is None or np.shape(held) != ours.shape:
                continue
            spread = np.maximum(tables.get(f"{feature}.std", np.abs(ours)), 1e-6)
            off = np.abs(np.asarray(held) - ours) / spread
            if off.max() > SAME:
                at = int(off.argmax())
                yield (
                    f"{feature}: {name} of {bundle.manifest.joints[at]} is {np.asarray(held)[at]:.3g} in the data "
                    f"set, {ours[at]:.3g} in the bundle; "
                    "the policy was trained on other data or other units"
                )
                break
