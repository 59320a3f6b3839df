# SPDX-License-Identifier: Apache-2.0
"""A simulated arm: MuJoCo physics, position servos and two cameras, on a clock that the caller drives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_edge.errors import CameraError, ConfigError
from vla_edge.robot.sim.mjcf import CUBE_SIDE_M, mjcf
from vla_edge.robot.sim.render import load_mujoco, new_renderer
from vla_edge.robot.sim.scene import Scene

GRAVITY_M_S2 = 9.81


@dataclass(frozen=True, slots=True)
class SimOptions:
    """height, width: size of a rendered picture. seed: of the picture noise. noisy: add it. renderer: see `render`."""

    height: int = 480
    width: int = 640
    seed: int = 0
    noisy: bool = True
    renderer: str = "egl"


class SimulatedArm:
    """The arm of a scene on a table with three cubes.

    Angles are float64 [joints] in radians in the order of its body's joints; time passes only in `step`. Rendering
    belongs to the thread that first asks for a picture. The same options, scene and calls give the same positions and
    pictures.
    """

    def __init__(self, scene: Scene, options: SimOptions | None = None) -> None:
        self.options = options or SimOptions()
        self._mujoco = load_mujoco(self.options.renderer)
        self.body = scene.body
        self.model: Any = self._mujoco.MjModel.from_xml_string(mjcf(self.body))
        self.data: Any = self._mujoco.MjData(self.model)
        joints = self.body.joints
        self._ids = [self.model.joint(name).id for name in joints]
        self._stops = np.array(self.model.jnt_range[self._ids])
        self._joints = np.array([self.model.joint(name).qposadr[0] for name in joints])
        self._speeds = np.array([self.model.joint(name).dofadr[0] for name in joints])
        self._low, self._high = self.body.low_rad, self.body.high_rad
        self._stiffness = np.array([servo.stiffness for servo in self.body.servos.values()])
        self._renderers: dict[tuple[int, int], Any] = {}
        self._pictures = 0
        self._owed_s, self._load_n = 0.0, 0.0
        self.reset(scene)

    def reset(self, scene: Scene) -> None:
        """Place the cubes, put the arm at rest in the scene's pose with its goals there, and restart the noise.

        ConfigError: the scene is another arm's.
        """
        if scene.body is not self.body:
            raise ConfigError(f"the scene is one of the {scene.body.name}, the arm is the {self.body.name}")
        self.scene = scene
        self._mujoco.mj_resetData(self.model, self.data)
        for colour, (x, y, yaw) in scene.cubes.items():
            start = self.model.joint(f"{colour}_cube").qposadr[0]
            self.data.qpos[start : start + 7] = [x, y, CUBE_SIDE_M / 2, np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)]
        self.data.qpos[self._joints] = np.clip(scene.pose, self._low, self._high)
        self._mujoco.mj_forward(self.model, self.data)
        self.data.ctrl[:] = self.positions + self.sag(self.positions)
        self._noise = np.random.default_rng([self.options.seed, 1])
        self._owed_s = 0.0

    @property
    def positions(self) -> NDArray[np.float64]:
        """Present angles."""
        return np.array(self.data.qpos[self._joints])

    @property
    def velocities(self) -> NDArray[np.float64]:
        """Present speeds, rad/s."""
        return np.array(self.data.qvel[self._speeds])

    @property
    def torques(self) -> NDArray[np.float64]:
        """Servo torques, N·m."""
        return np.array(self.data.actuator_force)

    @property
    def goals(self) -> NDArray[np.float64]:
        """Goal angles the servos hold now."""
        return np.array(self.data.ctrl)

    @property
    def tip(self) -> NDArray[np.float64]:
        """Where the tip is: metres, float64 [3]."""
        return np.array(self.data.site("tip").xpos)

    @property
    def configuration(self) -> NDArray[np.float64]:
        """Everything a picture depends on: joints and cubes, a copy."""
        return np.array(self.data.qpos)

    def show(self, configuration: NDArray[np.float64]) -> None:
        """Take over another simulated arm's configuration, at rest: what a thread that only renders does."""
        self.data.qpos[:] = configuration
        self._mujoco.mj_forward(self.model, self.data)

    @property
    def time_s(self) -> float:
        """Simulated time since the last reset."""
        return float(self.data.time)

    def set_goals(self, angles: Sequence[float] | NDArray[np.float64]) -> None:
        """New goal angles, clipped to the servos' ranges."""
        self.data.ctrl[:] = np.clip(angles, self._low, self._high)

    def place(self, angles: NDArray[np.float64]) -> None:
        """Put the arm at rest into a pose at once, without physics."""
        self.data.qpos[self._joints] = np.clip(angles, self._low, self._high)
        self.data.qvel[:] = 0
        self._mujoco.mj_forward(self.model, self.data)

    def block(self, joint: int, low: float, high: float) -> None:
        """Put stops at both sides of one joint, rad, within its own; infinite: its own alone."""
        own = self._stops[joint]
        self.model.jnt_range[self._ids[joint]] = max(low, own[0]), min(high, own[1])

    def set_torque(self, joint: int, on: bool) -> None:
        """Switch one servo; off leaves only friction and the gears' drag."""
        stiffness = self._stiffness[joint] if on else 0.0
        self.model.actuator_gainprm[joint, 0] = stiffness
        self.model.actuator_biasprm[joint, 1] = -stiffness

    def hang(self, kilograms: float) -> None:
        """Hang a weight on the tip; 0 takes it off."""
        self._load_n = kilograms * GRAVITY_M_S2

    def step(self, seconds: float) -> None:
        """Let time pass; a rest shorter than the physics' own step is kept for the next call."""
        pull = np.array([0.0, 0.0, -self._load_n])
        lever = self.tip - self.data.body("hand").xipos
        self.data.body("hand").xfrc_applied[:] = *pull, *np.cross(lever, pull)
        self._owed_s += seconds
        steps = int(self._owed_s / self.model.opt.timestep + 1e-9)
        self._owed_s -= steps * self.model.opt.timestep
        if steps > 0:
            self._mujoco.mj_step(self.model, self.data, steps)

    @property
    def positions_now(self) -> NDArray[np.float64]:
        """Present angles at the very moment that `step` has come to, which lies between two steps of the physics."""
        return self.positions + self.velocities * self._owed_s

    def sag(self, angles: NDArray[np.float64]) -> NDArray[np.float64]:
        """How far above `angles` the goals must be for the arm to rest there against gravity, in rad."""
        still = self._mujoco.MjData(self.model)
        still.qpos[:] = self.data.qpos
        still.qpos[self._joints] = angles
        self._mujoco.mj_forward(self.model, still)
        return np.array(still.qfrc_bias[self._speeds]) / self._stiffness

    def render(self, camera: str, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
        """A picture, uint8 [height, width, 3], RGB, a fresh array. `size` (height, width) overrides the options.

        Errors: CameraError for an unknown camera or a machine that cannot render.
        """
        if camera not in self.body.cameras:
            raise CameraError(f"the simulated arm has no camera {camera!r}; it has {', '.join(self.body.cameras)}")
        height, width = size or (self.options.height, self.options.width)
        if (height, width) not in self._renderers:
            self._renderers[height, width] = new_renderer(
                self._mujoco, self.model, height, width, self.options.renderer
            )
        renderer = self._renderers[height, width]
        renderer.update_scene(self.data, camera)
        picture: NDArray[np.uint8] = renderer.render()
        if self.options.noisy and camera != "viewer":
            # Flipping the lowest bit moves a value by one grey level and can neither overflow nor underflow.
            flips = np.unpackbits(np.frombuffer(self._noise.bytes(-(-picture.size // 8)), np.uint8), count=picture.size)
            picture = picture ^ flips.reshape(picture.shape)
        return picture

    def close(self) -> None:
        """Free the renderers."""
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()
