# SPDX-License-Identifier: Apache-2.0
"""A robot of no hardware for LeRobot's commands: it stands where it was sent, shows seeded pictures and counts.

ARM_OUT: npz that is written after ARM_TICKS actions, with `actions` [ticks, joints] and `seconds` [ticks] from each
observation to its action; then the command is interrupted, as a person would.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lerobot.robots import Robot, RobotConfig

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")


@RobotConfig.register_subclass("counting_arm")
@dataclass
class CountingArmConfig(RobotConfig):
    """shape: height and width of every picture. pictures: names of the cameras, with commas."""

    height: int = 96
    width: int = 128
    pictures: str = "front,wrist"


class CountingArm(Robot):
    config_class = CountingArmConfig
    name = "counting_arm"

    def __init__(self, config: CountingArmConfig) -> None:
        super().__init__(config)
        self.config = config
        self.cameras: dict[str, Any] = {}
        self._shape, self._names = (config.height, config.width, 3), config.pictures.split(",")
        self._state, self._count, self._connected = np.zeros(len(JOINTS)), 0, False
        self._actions: list[list[float]] = []
        self._seconds: list[float] = []

    @property
    def observation_features(self) -> dict[str, Any]:
        return {f"{joint}.pos": float for joint in JOINTS} | dict.fromkeys(self._names, self._shape)

    @property
    def action_features(self) -> dict[str, Any]:
        return {f"{joint}.pos": float for joint in JOINTS}

    @property
    def is_connected(self) -> bool:
        return self._connected

    @property
    def is_calibrated(self) -> bool:
        return True

    def connect(self, calibrate: bool = True) -> None:
        self._connected = True
        torch.manual_seed(7)  # of the noise, whatever loading the policy has drawn

    def calibrate(self) -> None: ...

    def configure(self) -> None: ...

    def get_observation(self) -> dict[str, Any]:
        random = np.random.default_rng(self._count)
        made = {f"{joint}.pos": float(value) for joint, value in zip(JOINTS, self._state)}
        pictures = {name: random.integers(0, 256, self._shape, dtype=np.uint8) for name in self._names}
        self._start = time.perf_counter()
        return made | pictures

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        self._seconds.append(time.perf_counter() - self._start)
        self._actions.append([float(action[f"{joint}.pos"]) for joint in JOINTS])
        self._state, self._count = np.array(self._actions[-1]), self._count + 1
        if self._count == int(os.environ["ARM_TICKS"]):
            np.savez(os.environ["ARM_OUT"], actions=np.array(self._actions), seconds=np.array(self._seconds))
            os.kill(os.getpid(), signal.SIGINT)
        return action

    def disconnect(self) -> None:
        self._connected = False
