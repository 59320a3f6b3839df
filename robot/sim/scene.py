# SPDX-License-Identifier: Apache-2.0
"""What stands on the simulated table: one of the known arms in its first pose, and three coloured cubes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vla_edge.robot.sim.bodies.arm_body import ArmBody
from vla_edge.robot.sim.bodies.koch_body import KOCH
from vla_edge.robot.sim.bodies.so101_body import SO101
from vla_edge.robot.sim.mjcf import CUBE_COLOURS, CUBE_SIDE_M

BODIES = {body.name: body for body in (KOCH, SO101)}
"""The arms that can be simulated, by name."""

WIDEST_RAD = math.radians(60)
APART_M = 0.075
"""Cubes stand within ± this angle of the pan axis, at least so far apart."""

HOVER_M = 0.03
"""The tip reaches a cube when it stands this far above its top."""


@dataclass(frozen=True, slots=True)
class Scene:
    """cubes: colour -> (x, y) metres and yaw rad. pose: joint angles of the arm in rad."""

    cubes: Mapping[str, tuple[float, float, float]]
    pose: tuple[float, ...]
    body: ArmBody = KOCH

    def target(self, colour: str) -> NDArray[np.float64]:
        """The point the tip reaches for: metres, float64 [3]."""
        x, y, _ = self.cubes[colour]
        return np.array([x, y, CUBE_SIDE_M + HOVER_M])


def random_scene(seed: int, body: ArmBody = KOCH) -> Scene:
    """A scene that is the same for the same seed; the arm stands near its rest pose."""
    rng = np.random.default_rng([seed, 2])
    pose = np.array(body.rest_rad) + rng.normal(0, [0.4, 0.06, 0.06, 0.06, 0.05, 0.05])
    return Scene(random_cubes(rng, body), tuple(float(angle) for angle in pose), body)


def random_cubes(rng: np.random.Generator, body: ArmBody) -> dict[str, tuple[float, float, float]]:
    """Places for the three cubes, uniform over the ring sector that the arm reaches."""
    while True:
        radius = np.sqrt(rng.uniform(body.near_m**2, body.far_m**2, len(CUBE_COLOURS)))
        angle = rng.uniform(-WIDEST_RAD, WIDEST_RAD, len(CUBE_COLOURS))
        x, y = radius * np.cos(angle), radius * np.sin(angle)
        distance = np.hypot(x[:, None] - x, y[:, None] - y)[np.triu_indices(len(x), 1)]
        if distance.min() >= APART_M:
            yaw = rng.uniform(-math.pi, math.pi, len(x))
            return {c: (float(x[i]), float(y[i]), float(yaw[i])) for i, c in enumerate(CUBE_COLOURS)}
