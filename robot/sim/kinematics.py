# SPDX-License-Identifier: Apache-2.0
"""Where a simulated arm's tip is, and the joint angles that bring it to a point, in closed form.

Frame, zero pose and lengths: `robot/sim/bodies/arm_body.py`. All flex axes are parallel, so pan chooses a plane, and in
it a length (forward, up) pitched forward and down by θ is (f cos θ + u sin θ, u cos θ − f sin θ).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vla_edge.robot.sim.bodies.arm_body import ArmBody


def _pitched(length: tuple[float, float], angle: float) -> tuple[float, float]:
    forward, up = length
    return (forward * math.cos(angle) + up * math.sin(angle), up * math.cos(angle) - forward * math.sin(angle))


def tip_position(body: ArmBody, angles: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Tip between the closed jaws: float64 [3], metres. The gripper does not move it."""
    pan, lift, elbow, wrist, roll = (float(angle) for angle in angles[:5])
    links = body.links
    forward, up = links.hand
    steps = (
        links.shoulder,
        _pitched(links.upper_arm, lift),
        _pitched(links.forearm, lift + elbow),
        _pitched((forward, up * math.cos(roll)), lift + elbow + wrist),
    )
    reach, height = (sum(parts) for parts in zip(*steps))
    left, turn = -links.roll_axis * up * math.sin(roll), links.pan_axis * pan
    return np.array(
        [reach * math.cos(turn) - left * math.sin(turn), reach * math.sin(turn) + left * math.cos(turn), height]
    )


def reach_angles(
    body: ArmBody, point: Sequence[float] | NDArray[np.float64], pitch_rad: float
) -> NDArray[np.float64] | None:
    """Pan, lift, elbow and wrist angles, float64 [4], that put the tip at `point` (metres) with the hand pitched
    `pitch_rad` below the horizon and not rolled, elbow up; None when the point is out of reach."""
    x, y, z = (float(value) for value in point)
    links = body.links
    hand = _pitched(links.hand, pitch_rad)
    reach = math.hypot(x, y) - hand[0] - links.shoulder[0]
    height = z - hand[1] - links.shoulder[1]
    upper_arm, forearm, distance = math.hypot(*links.upper_arm), math.hypot(*links.forearm), math.hypot(reach, height)
    if not abs(upper_arm - forearm) < distance <= upper_arm + forearm:
        return None
    # Triangle shoulder-elbow-wrist: the angle at the shoulder and the elbow's bend from straight; at zero the upper
    # arm leans forward and the forearm stands above the horizon by a little.
    leans, rises = math.atan2(*links.upper_arm), math.atan2(links.forearm[1], links.forearm[0])
    at_shoulder = math.acos((upper_arm**2 + distance**2 - forearm**2) / (2 * upper_arm * distance))
    bend = math.pi - math.acos((upper_arm**2 + forearm**2 - distance**2) / (2 * upper_arm * forearm))
    lift = math.atan2(reach, height) - at_shoulder - leans
    elbow = bend - math.pi / 2 + leans + rises
    return np.array([links.pan_axis * math.atan2(y, x), lift, elbow, pitch_rad - lift - elbow])
