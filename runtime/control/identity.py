# SPDX-License-Identifier: Apache-2.0
"""Do bundle, calibration, cameras and the arm itself describe the same robot? Refused with the difference named, before
any motion."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from vla_edge.bundle import Bundle, CameraSpec
from vla_edge.camera_names import nearest, short_name
from vla_edge.errors import ConfigError, IdentityError
from vla_edge.robot.arm_description import ArmDescription, arms_called
from vla_edge.robot.joint_calibration import JointCalibrations, JointUnits, linear_map
from vla_edge.runtime.inference.prepare import other_aspects
from vla_edge.runtime.inference.units import ACTION, STATE

OUTSIDE = 0.25
"""Share of its range by which a joint's mean in the policy's data may lie outside this arm's range."""
REACH_MARGIN = 0.05
"""Share of a joint's range that the data may reach beyond it: another arm of the same kind, or a softer stop."""
START_OUTSIDE = 0.5
"""Share of its range in the policy's data by which a joint may start outside that range."""
SWAP_GAIN = 0.5
"""Standard deviations by which two pictures must fit better when exchanged, on average, to count as swapped."""


def units_of(
    bundle: Bundle,
    given: str | None,
    arm: ArmDescription,
    tables: Mapping[str, NDArray[np.float32]],
    calibration: JointCalibrations,
) -> tuple[JointUnits, str | None]:
    """The joint units and, where they are a guess, a line that says so. IdentityError: bundle and `given` disagree, or
    nobody says them and the data's statistics do not either.

    A checkpoint does not say its units. Where LeRobot has always had one unit for an arm that is then taken, and
    `check_joints` compares the statistics with it; where it has had two, the statistics must show which.
    """
    known = bundle.manifest.joint_units
    if known == "unknown":
        if given is not None:
            return JointUnits(given), None
        if arm.units_must_be_known:
            return _recognised(bundle, arm, tables, calibration)
        taken = JointUnits(arm.joint_units[0])
        return (
            taken,
            f"{bundle.path} does not say its joint units: taken as {taken.value}; give --joint-units when it was "
            "trained "
            "on others",
        )
    if given is not None and given != known:
        raise IdentityError(
            f"{bundle.path}: joint units are {known}, --joint-units says {given}; leave --joint-units away"
        )
    return JointUnits(known), None


def _recognised(
    bundle: Bundle, arm: ArmDescription, tables: Mapping[str, NDArray[np.float32]], calibration: JointCalibrations
) -> tuple[JointUnits, str]:
    """The only units in which all that the policy's data reached lies within this arm's range."""
    fits = [units for units in map(JointUnits, arm.joint_units) if _reaches(tables, calibration, units)]
    choices = " or ".join(f"--joint-units {units}" for units in arm.joint_units)
    why = f"{bundle.path} does not say its joint units, and LeRobot has recorded {arm.title} in both"
    if not fits:
        raise IdentityError(
            f"{why}; its data fits neither on {calibration.source}: give this arm's own calibration, or say it with "
            f"{choices}"
        )
    if len(fits) > 1:
        raise IdentityError(f"{why}; its data fits both: say it with {choices} (wrong, a joint goes twice too far)")
    return fits[0], f"{bundle.path} does not say its joint units: its data fits {fits[0].value} alone"


def _reaches(tables: Mapping[str, NDArray[np.float32]], calibration: JointCalibrations, units: JointUnits) -> bool:
    """Whether the least and the most of the data's states lie in the joints' ranges, read in `units`. False where they
    are not known."""
    low, high = tables.get(f"{STATE}.min"), tables.get(f"{STATE}.max")
    if low is None or high is None or low.shape != (len(calibration.joints),):
        return False
    for joint, least, most in zip(calibration.joints, low, high):
        line = linear_map(joint, units)
        margin = REACH_MARGIN * (joint.range_max - joint.range_min)
        if line.scale * least + line.offset < joint.range_min - margin:
            return False
        if line.scale * most + line.offset > joint.range_max + margin:
            return False
    return True


def check_joints(
    bundle: Bundle,
    tables: Mapping[str, NDArray[np.float32]],
    arm: ArmDescription,
    calibration: JointCalibrations,
    units: JointUnits,
) -> None:
    """Data of such an arm, its joints in its order, and statistics that lie in this arm's ranges.

    Older Koch datasets use other signs and zeros: their means then lie outside what this arm can reach.
    """
    recorded_on = arms_called(bundle.manifest.robot_type)
    if recorded_on and all((one.protocol, one.joint_names) != (arm.protocol, arm.joint_names) for one in recorded_on):
        raise IdentityError(
            f"{bundle.path}: the policy's data was recorded on {recorded_on[0].title} ({bundle.manifest.robot_type}), "
            f"this is {arm.title}: the same joint values are other poses; give a bundle of this arm"
        )
    names = bundle.manifest.joints
    dim = bundle.manifest.policy.action_dim
    if units.value not in arm.joint_units:
        raise IdentityError(
            f"{bundle.path}: joint units are {units.value}, {arm.title} knows {', '.join(arm.joint_units)}; give "
            "another bundle"
        )
    if dim != len(arm.joints):
        raise IdentityError(
            f"{bundle.path}: the policy acts on {dim} joints, {arm.title} has {len(arm.joints)}; give another bundle"
        )
    for name, expected in zip(names, arm.joint_names):
        if expected not in name:
            raise IdentityError(
                f"{bundle.path}: joint {name!r} stands where {arm.title} has {expected}; export with the arm's own "
                "joint order"
            )
    for feature in (STATE, ACTION):
        mean = tables.get(f"{feature}.mean")
        if mean is None or mean.shape != (dim,):
            continue
        for joint, value in zip(calibration.joints, mean):
            line = linear_map(joint, units)
            counts = line.scale * float(value) + line.offset
            margin = OUTSIDE * (joint.range_max - joint.range_min)
            if not joint.range_min - margin <= counts <= joint.range_max + margin:
                low, high = ((limit - line.offset) / line.scale for limit in (joint.range_min, joint.range_max))
                raise IdentityError(
                    f"{joint.name}: the policy's data has a mean {feature} of {value:.0f} {units.value}, "
                    f"{calibration.source} allows "
                    f"{low:.0f}..{high:.0f}; the dataset has another zero or sign: convert it or give its own "
                    "calibration"
                )


def check_start_pose(bundle: Bundle, tables: Mapping[str, NDArray[np.float32]], positions: NDArray[np.float32]) -> None:
    """positions: float32 [joints] in joint units, before anything moves. IdentityError names the joint that stands
    where no demonstration came near. A bundle that does not say its units cannot be compared."""
    low, high = tables.get(f"{STATE}.min"), tables.get(f"{STATE}.max")
    if bundle.manifest.joint_units == "unknown" or low is None or high is None or low.shape != positions.shape:
        return
    for name, value, least, most in zip(bundle.manifest.joints, positions, low, high):
        margin = START_OUTSIDE * (most - least)
        if not least - margin <= value <= most + margin:
            raise IdentityError(
                f"{name} stands at {value:.0f} {bundle.manifest.joint_units}, the policy's data goes from "
                f"{least:.0f} to {most:.0f}; "
                "move the arm near the demonstrations' start by hand, or check units and calibration"
            )


def cameras_named(bundle: Bundle, names: Iterable[str]) -> dict[str, CameraSpec]:
    """Camera of the policy by name, before and after `rename_map`. ConfigError: it has none of one of `names`."""
    cameras = bundle.manifest.cameras
    known = {name: camera for camera in cameras for name in (camera.name, camera.source)}
    for name in names:
        if name not in known:
            like = nearest(name, [camera.source for camera in cameras])
            raise ConfigError(f"the policy has no camera {short_name(name)}; {like}")
    return known


def check_picture_sizes(bundle: Bundle, pictures: Mapping[str, NDArray[np.uint8]]) -> None:
    """pictures: the first of each camera by its name before or after `rename_map`. IdentityError names a camera whose
    pictures have another aspect than those the policy learnt from."""
    for fact, camera in other_aspects(bundle.manifest.cameras, pictures):
        raise IdentityError(
            f"{fact}; ask the device for it: --camera NAME=DEVICE,{camera.width}x{camera.height}, or go on with "
            "--trust-cameras"
        )


def check_camera_places(
    bundle: Bundle, tables: Mapping[str, NDArray[np.float32]], pictures: Mapping[str, NDArray[np.uint8]]
) -> None:
    """pictures as in `check_picture_sizes`, uint8 [height, width, 3]. IdentityError names two cameras that look
    swapped: brightness and colour of their pictures fit the policy's statistics of the other one."""
    cameras = {name: camera for camera in bundle.manifest.cameras for name in (camera.name, camera.source)}
    known = {
        name: picture for name, picture in pictures.items() if _picture_statistics(tables, cameras[name]) is not None
    }
    for first, second in combinations(known, 2):
        gain = sum(
            _unlike(known[name], tables, cameras[name]) - _unlike(known[other], tables, cameras[name])
            for name, other in ((first, second), (second, first))
        )
        if gain > SWAP_GAIN * 2:
            raise IdentityError(
                f"cameras {first} and {second} look swapped: each one's picture fits the other's statistics; "
                "exchange their devices, or give --trust-cameras when they are right"
            )


def _picture_statistics(
    tables: Mapping[str, NDArray[np.float32]], camera: CameraSpec
) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """Mean and std [3] of a camera's pixels, 0 to 1, where the checkpoint brought them."""
    for name in (camera.name, camera.source):
        mean, std = tables.get(f"{name}.mean"), tables.get(f"{name}.std")
        if mean is not None and std is not None and mean.size == std.size == 3:
            return mean.reshape(3), std.reshape(3)
    return None


def _unlike(picture: NDArray[np.uint8], tables: Mapping[str, NDArray[np.float32]], camera: CameraSpec) -> float:
    """How far a picture's mean colour lies from a camera's statistics, in its standard deviations."""
    statistics = _picture_statistics(tables, camera)
    assert statistics is not None
    mean, std = statistics
    return float(np.mean(np.abs(picture.mean((0, 1)) / 255 - mean) / np.maximum(std, 0.02)))
