# SPDX-License-Identifier: Apache-2.0
"""The scripted expert in a policy's place: what a closed loop does when every chunk is right."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vla_edge.contract import Observation
from vla_edge.robot.sim.mjcf import CUBE_COLOURS
from vla_edge.robot.sim.scene import Scene
from vla_edge.robot.sim.simulated_arm import SimulatedArm
from vla_edge.trials.lockstep import LockstepOptions
from vla_edge.trials.reach_expert import expert_chunk, expert_goal


class ScriptedPlanner:
    """The scripted expert behind the planner's border: it is told where the cubes are, and reads the task's colour."""

    def __init__(self, arm: SimulatedArm) -> None:
        self._arm = arm

    def reset(self, seed: int, options: LockstepOptions) -> None:
        self._scene: Scene = self._arm.scene

    def plan(self, observation: Observation, now_ns: int) -> NDArray[np.float32]:
        colour = next(colour for colour in CUBE_COLOURS if colour in observation.task)
        present = self._arm.body.radians(observation.joints.positions.astype(np.float64))
        goal = expert_goal(self._arm, self._scene, colour)
        return self._arm.body.units(expert_chunk(present + self._arm.sag(present), goal)).astype(np.float32)
