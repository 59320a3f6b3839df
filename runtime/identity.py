"""Do bundle, calibration and joint units describe the same arm? Refused with the joint named, before any motion."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from vla_edge.bundle import Bundle
from vla_edge.contract import KOCH_JOINTS
from vla_edge.errors import IdentityError
from vla_edge.robot.joint_calibration import JointCalibrations, JointUnits, linear_map
from vla_edge.runtime.units import ACTION, STATE

OUTSIDE = 0.25
"""Share of its range by which a joint's mean in the policy's data may lie outside this arm's range."""


def units_of(bundle: Bundle, told: str | None) -> tuple[JointUnits, str | None]:
    """The joint units and, where they are a guess, a line that says so. IdentityError: bundle and `told` disagree.

    A checkpoint does not say its units; LeRobot's default for the Koch is then taken, and `check_joints` compares the
    statistics with it.
    """
    known = bundle.manifest.joint_units
    if known == "unknown":
        if told is not None:
            return JointUnits(told), None
        taken = JointUnits.RANGE_M100_100
        return taken, f"{bundle.path} does not say its joint units: taken as {taken.value}; give --units when it was trained on others"
    if told is not None and told != known:
        raise IdentityError(f"{bundle.path}: joint units are {known}, --units says {told}; leave --units away")
    return JointUnits(known), None


def check_joints(
    bundle: Bundle, tables: Mapping[str, NDArray[np.float32]], calibration: JointCalibrations, units: JointUnits
) -> None:
    """Six joints in the Koch's order, and statistics that lie in this arm's ranges.

    Older Koch data sets use other signs and zeros: their means then lie outside what this arm can reach.
    """
    names = bundle.manifest.joints
    dim = bundle.manifest.policy.action_dim
    if dim != len(KOCH_JOINTS):
        raise IdentityError(f"{bundle.path}: the policy acts on {dim} joints, a Koch has {len(KOCH_JOINTS)}; give another bundle")
    for name, expected in zip(names, KOCH_JOINTS):
        if expected not in name:
            raise IdentityError(f"{bundle.path}: joint {name!r} stands where a Koch has {expected}; export with the arm's own joint order")
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
                    f"{joint.name}: the policy's data has a mean {feature} of {value:.0f} {units.value}, {calibration.source} allows "
                    f"{low:.0f}..{high:.0f}; the data set has another zero or sign: convert it or give its own calibration"
                )
