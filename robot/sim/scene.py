# SPDX-License-Identifier: Apache-2.0
"""What stands on the simulated table: three coloured cubes and the arm's first pose."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vla_edge.robot.sim.mjcf import CUBE_COLOURS, CUBE_SIDE_M

NEAREST_M = 0.13
FARTHEST_M = 0.215
WIDEST_RAD = math.radians(60)
APART_M = 0.075
"""Cubes stand between these radii and within ± this angle of the pan axis, at least so far apart."""

HOVER_M = 0.03
"""The tip reaches a cube when it stands this far above its top."""

REST_RAD = (0.0, -0.9, 0.95, 0.75, 0.0, 0.2)
"""Folded pose in which the arm waits: radians in the order of KOCH_JOINTS."""


@dataclass(frozen=True, slots=True)
class Scene:
    """cubes: colour -> (x, y) metres and yaw rad. pose: six joint angles in rad."""

    cubes: Mapping[str, tuple[float, float, float]]
    pose: tuple[float, ...]

    def target(self, colour: str) -> NDArray[np.float64]:
        """The point the tip reaches for: metres, float64 [3]."""
        x, y, _ = self.cubes[colour]
        return np.array([x, y, CUBE_SIDE_M + HOVER_M])


def random_scene(seed: int) -> Scene:
    """A scene that is the same for the same seed; the arm stands near its rest pose."""
    rng = np.random.default_rng([seed, 2])
    pose = np.array(REST_RAD) + rng.normal(0, [0.4, 0.06, 0.06, 0.06, 0.05, 0.05])
    return Scene(random_cubes(rng), tuple(float(angle) for angle in pose))


def random_cubes(rng: np.random.Generator) -> dict[str, tuple[float, float, float]]:
    """Places for the three cubes, uniform over the reachable ring sector."""
    while True:
        radius = np.sqrt(rng.uniform(NEAREST_M**2, FARTHEST_M**2, len(CUBE_COLOURS)))
        angle = rng.uniform(-WIDEST_RAD, WIDEST_RAD, len(CUBE_COLOURS))
        x, y = radius * np.cos(angle), radius * np.sin(angle)
        distance = np.hypot(x[:, None] - x, y[:, None] - y)[np.triu_indices(len(x), 1)]
        if distance.min() >= APART_M:
            yaw = rng.uniform(-math.pi, math.pi, len(x))
            return {c: (float(x[i]), float(y[i]), float(yaw[i])) for i, c in enumerate(CUBE_COLOURS)}
