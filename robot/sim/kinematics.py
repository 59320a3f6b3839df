# SPDX-License-Identifier: Apache-2.0
"""Where the simulated Koch's tip is, and the joint angles that bring it to a point, in closed form.

Frame and zero pose: `robot/sim/mjcf.py`. Angles in radians in the order of KOCH_JOINTS.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vla_edge.robot.sim.mjcf import FOREARM_M, HAND_M, SHOULDER_HEIGHT_M, UPPER_ARM_M


def tip_position(angles: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Tip between the closed jaws: float64 [3], metres. Roll and gripper do not move it."""
    pan, lift, elbow, wrist = (float(angle) for angle in angles[:4])
    forearm = lift + elbow
    hand = forearm + wrist
    reach = UPPER_ARM_M * math.sin(lift) + FOREARM_M * math.cos(forearm) + HAND_M * math.cos(hand)
    height = SHOULDER_HEIGHT_M + UPPER_ARM_M * math.cos(lift) - FOREARM_M * math.sin(forearm) - HAND_M * math.sin(hand)
    return np.array([reach * math.cos(pan), reach * math.sin(pan), height])


def reach_angles(point: Sequence[float] | NDArray[np.float64], pitch_rad: float) -> NDArray[np.float64] | None:
    """Pan, lift, elbow and wrist angles, float64 [4], that put the tip at `point` (metres) with the hand pitched
    `pitch_rad` below the horizon, elbow up; None when the point is out of reach."""
    x, y, z = (float(value) for value in point)
    reach = math.hypot(x, y) - HAND_M * math.cos(pitch_rad)
    height = z + HAND_M * math.sin(pitch_rad) - SHOULDER_HEIGHT_M
    distance = math.hypot(reach, height)
    if not abs(UPPER_ARM_M - FOREARM_M) < distance <= UPPER_ARM_M + FOREARM_M:
        return None
    # Triangle shoulder-elbow-wrist: the angle at the shoulder and the elbow's bend from straight.
    at_shoulder = math.acos((UPPER_ARM_M**2 + distance**2 - FOREARM_M**2) / (2 * UPPER_ARM_M * distance))
    bend = math.pi - math.acos((UPPER_ARM_M**2 + FOREARM_M**2 - distance**2) / (2 * UPPER_ARM_M * FOREARM_M))
    lift = math.atan2(reach, height) - at_shoulder
    elbow = bend - math.pi / 2
    return np.array([math.atan2(y, x), lift, elbow, pitch_rad - lift - elbow])
