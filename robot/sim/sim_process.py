# SPDX-License-Identifier: Apache-2.0
"""The simulated arm's process as others see it: its options, its files, and how to start it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vla_edge.robot.arm_description import DEFAULT_ARM
from vla_edge.robot.sim.mjcf import CAMERAS
from vla_edge.robot.sim.scene import BODIES, Scene, random_scene

PORT = "servo-bus"
CALIBRATION = "calibration.json"
FRAMES = "frames."


@dataclass(frozen=True, slots=True)
class SimProcess:
    """run_dir: where the files are made. scene: seed of the cubes and the first pose. record: .mp4 or .png to write.
    arm: its name in BODIES."""

    run_dir: Path
    scene: int = 0
    height: int = 480
    width: int = 640
    fps: float = 30.0
    renderer: str = "egl"
    record: Path | None = None
    arm: str = DEFAULT_ARM

    def new_scene(self) -> Scene:
        """What stands on the table at the start."""
        return random_scene(self.scene, BODIES[self.arm])

    @property
    def port(self) -> Path:
        """The link to the servo bus's terminal."""
        return self.run_dir / PORT

    @property
    def calibration(self) -> Path:
        """The joint calibration this arm was made with."""
        return self.run_dir / CALIBRATION

    def cameras(self) -> dict[str, Path]:
        """Short camera name -> its frames file."""
        return {camera: self.run_dir / f"{FRAMES}{camera}" for camera in CAMERAS}

    def command(self) -> list[str]:
        """How to start this process: the arguments after the interpreter."""
        words = ["-m", "vla_edge.robot.sim.simulator", "--run-dir", str(self.run_dir), "--scene", str(self.scene)]
        words += ["--arm", self.arm, "--size", f"{self.width}x{self.height}", "--fps", str(self.fps)]
        words += ["--renderer", self.renderer]
        return words if self.record is None else [*words, "--video", str(self.record)]
