# SPDX-License-Identifier: Apache-2.0
"""The simulated arms: kinematics, servos, pictures, determinism."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vla_edge.errors import CameraError, ConfigError
from vla_edge.robot.sim.bodies.arm_body import ArmBody, counts_from_radians, radians_from_counts
from vla_edge.robot.sim.bodies.koch_body import KOCH
from vla_edge.robot.sim.bodies.so101_body import SO101
from vla_edge.robot.sim.kinematics import reach_angles, tip_position
from vla_edge.robot.sim.mjcf import CAMERAS, CUBE_COLOURS, CUBE_SIDE_M
from vla_edge.robot.sim.render import BACKENDS, load_mujoco, rendering_fault
from vla_edge.robot.sim.scene import APART_M, BODIES, random_scene
from vla_edge.robot.sim.simulated_arm import SimOptions, SimulatedArm

FAULT = rendering_fault()
pytestmark = pytest.mark.skipif(FAULT is not None, reason=str(FAULT))

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", params=sorted(BODIES))
def arm(request: pytest.FixtureRequest) -> SimulatedArm:
    return SimulatedArm(random_scene(0, BODIES[request.param]), SimOptions(height=96, width=128))


every_body = pytest.mark.parametrize("body", BODIES.values(), ids=sorted(BODIES))


def test_the_tip_is_where_the_closed_form_says(arm: SimulatedArm) -> None:
    rng = np.random.default_rng(4)
    for _ in range(20):
        pose = rng.uniform(arm.body.low_rad, arm.body.high_rad)
        arm.reset(type(arm.scene)(arm.scene.cubes, tuple(pose), arm.body))
        # Same trigonometry in two orders: float64 rounding only.
        assert np.abs(arm.tip - tip_position(arm.body, pose)).max() < 1e-12


@every_body
def test_inverse_kinematics_returns_to_the_point_it_was_given(body: ArmBody) -> None:
    for seed in range(100):
        scene = random_scene(seed, body)
        for colour in CUBE_COLOURS:
            target = scene.target(colour)
            angles = reach_angles(body, target, 1.2)
            assert angles is not None, f"seed {seed}: {colour} cube out of reach"
            assert np.abs(tip_position(body, [*angles, 0, 0]) - target).max() < 1e-9
            assert (body.low_rad[:4] < angles).all()
            assert (angles < body.high_rad[:4]).all()
    assert reach_angles(body, [0.5, 0.0, 0.1], 1.2) is None


@every_body
def test_cubes_stand_apart_and_a_seed_names_one_scene(body: ArmBody) -> None:
    for seed in range(50):
        places = np.array(list(random_scene(seed, body).cubes.values()))[:, :2]
        assert min(math.dist(places[i], places[j]) for i, j in ((0, 1), (0, 2), (1, 2))) >= APART_M
    assert random_scene(7, body) == random_scene(7, body)
    assert random_scene(7, body) != random_scene(8, body)


def test_servos_reach_their_goal_up_to_the_sag_a_p_controller_leaves(arm: SimulatedArm) -> None:
    arm.reset(random_scene(1, arm.body))
    angles = np.array([0.3, 0.2, 0.1, 0.6, 0.3, 0.4])
    arm.set_goals(angles)
    arm.step(2.0)
    sag = arm.sag(arm.positions)
    # Friction holds each joint up to frictionloss / stiffness away from the balance, at most 0.006 rad on each arm.
    assert np.abs(arm.positions + sag - angles).max() < 0.008
    assert 0.5 < math.degrees(np.abs(sag).max()) < 5, "a shoulder that carries the arm must sag visibly"


def test_torque_never_exceeds_the_data_sheet(arm: SimulatedArm) -> None:
    arm.reset(random_scene(2, arm.body))
    arm.set_goals([1.9, 1.5, -1.5, 1.5, 2, 1])
    # The SO-101's: what BAM's figures give at 7.4 V, half of it for the gripper.
    limits = np.array([1.4, 1.4, 0.52, 0.52, 0.52, 0.52] if arm.body is KOCH else [3.351] * 5 + [1.676])
    worst = np.zeros(6)
    for _ in range(100):
        arm.step(0.01)
        worst = np.maximum(worst, np.abs(arm.torques))
    assert (worst <= limits * 1.001).all()
    assert worst[4] == pytest.approx(limits[4], rel=1e-3), "a goal far away must saturate the servo"


def test_pan_turns_through_its_whole_range(arm: SimulatedArm) -> None:
    arm.reset(random_scene(3, arm.body))
    for goal in (arm.body.low_rad[0], arm.body.high_rad[0]):
        arm.set_goals([goal, -0.5, 0.5, 0.5, 0, 0])
        arm.step(3.0)
        assert abs(arm.positions[0] - goal) < 0.025  # the stop stands 0.02 rad inside the range


def test_an_arm_without_torque_falls(arm: SimulatedArm) -> None:
    arm.reset(type(arm.scene)(arm.scene.cubes, (0, 0.6, -0.2, 0.2, 0, 0), arm.body))
    before = arm.tip[2]
    for joint in range(6):
        arm.set_torque(joint, False)
    arm.step(1.0)
    for joint in range(6):
        arm.set_torque(joint, True)
    assert arm.tip[2] < before - 0.02


def test_the_same_calls_give_the_same_positions_and_pictures() -> None:

    def run() -> tuple[bytes, bytes]:
        arm = SimulatedArm(random_scene(5), SimOptions(height=48, width=64, seed=3))
        arm.set_goals([0.3, 0.2, 0.1, 0.5, 0, 0])
        pictures = []
        for _ in range(5):
            arm.step(1 / 30)
            pictures.append(arm.render("laptop").tobytes())
        arm.close()
        return arm.positions.tobytes(), b"".join(pictures)

    assert run() == run()


def test_small_time_steps_add_up(arm: SimulatedArm) -> None:
    arm.reset(random_scene(0, arm.body))
    for _ in range(3000):
        arm.step(1 / 3000)
    assert arm.time_s == pytest.approx(1.0, abs=0.003)  # one physics step


def test_pictures_show_the_cubes_and_carry_one_grey_level_of_noise(arm: SimulatedArm) -> None:
    arm.reset(random_scene(0, arm.body))
    for camera in CAMERAS:
        first, second = arm.render(camera), arm.render(camera)
        assert first.shape == (96, 128, 3)
        assert first.dtype == np.uint8
        difference = first.astype(int) - second.astype(int)
        assert np.abs(difference).max() == 1
        assert 0.4 < (difference != 0).mean() < 0.6, "half of the independent bits differ"
        image = first.astype(int)
        for channel in range(3):
            others = [c for c in range(3) if c != channel]
            saturated = image[..., channel] > 1.8 * image[..., others].max(-1)
            assert saturated.sum() > 8, f"{camera} does not see the {CUBE_COLOURS[channel]} cube"


def test_a_cube_rests_on_the_table_and_moves_when_pushed(arm: SimulatedArm) -> None:
    scene = type(arm.scene)(
        {"red": (0.2, 0.0, 0.0), "green": (0.1, 0.15, 0.0), "blue": (0.1, -0.15, 0.0)},
        tuple(np.array(arm.body.ready_rad) - [0.5, 0, 0, 0.6, 0, 0]),
        arm.body,
    )
    arm.reset(scene)
    arm.step(0.5)
    assert abs(arm.data.body("red_cube").xpos[2] - CUBE_SIDE_M / 2) < 1e-3
    angles = reach_angles(arm.body, [0.2, 0.0, 0.02], 1.0)
    assert angles is not None
    for pan in np.linspace(-0.5, 0.5, 60):
        arm.set_goals([pan, *angles[1:], 0, 0])
        arm.step(1 / 30)
    assert abs(arm.data.body("red_cube").xpos[1]) > 0.02


def test_joint_units_of_the_so101_are_degrees_from_the_models_zero_and_the_gripper_0_to_100() -> None:
    """As LeRobot's follower has them: (ticks − middle) · 360 / 4095, wrist_roll over the whole turn."""
    angles = np.array([0.3, -0.2, 0.1, 0.4, -0.5, 0.0])
    units = SO101.units(angles)
    rows = SO101.calibration()
    counts = angles * 4096 / (2 * math.pi) + 2048
    for row, unit, count in zip(rows[:5], units, counts):
        assert unit == pytest.approx((count - (row.range_min + row.range_max) / 2) * 360 / 4095)
    assert (rows[4].range_min, rows[4].range_max) == (0, 4095)
    # Within a count or two of plain degrees: a symmetric range has its middle at the model's zero.
    assert np.abs(units[:5] - np.degrees(angles[:5])).max() < 0.12
    assert SO101.units(SO101.low_rad)[5] == pytest.approx(0, abs=0.1)
    assert SO101.units(SO101.high_rad)[5] == pytest.approx(100, abs=0.1)
    assert np.abs(SO101.radians(units) - angles).max() < 1e-12


def test_the_so101_stands_at_zero_as_the_published_model_does() -> None:
    """Tip of frame gripperframe in so101_new_calib.urdf with all joints at zero, from the pan axis: 0.3914 − 0.0388 m
    ahead, 0.2265 m up; a positive pan turns it to the right, a positive gripper angle opens the jaw upwards."""
    assert tip_position(SO101, np.zeros(6)) == pytest.approx([0.3526, 0.0, 0.2265], abs=5e-4)
    assert tip_position(SO101, [0.5, 0, 0, 0, 0, 0])[1] < 0
    arm = SimulatedArm(random_scene(0, SO101), SimOptions(height=96, width=128))
    heights = []
    for gripper in (0.0, 0.5):
        arm.place(np.array([0, 0, 0, 0, 0, gripper]))
        heights.append(arm.data.body("jaw").xipos[2])
    assert heights[1] > heights[0] + 0.01


def test_a_scene_of_another_arm_is_refused() -> None:
    with pytest.raises(ConfigError, match="the scene is one of the so101, the arm is the koch"):
        SimulatedArm(random_scene(0)).reset(random_scene(0, SO101))


def test_an_unknown_camera_or_another_renderer_is_named(arm: SimulatedArm) -> None:
    with pytest.raises(CameraError, match="no camera 'wrist'; it has laptop, phone"):
        arm.render("wrist")
    with pytest.raises(CameraError, match="start a new process for osmesa"):
        load_mujoco("osmesa")


def test_a_machine_without_the_opengl_library_is_told_what_to_install() -> None:
    code = (
        "import ctypes.util, ctypes\n"
        "real = ctypes.CDLL.__init__\n"
        "def blind(self, name, *a, **k):\n"
        "    if name and ('EGL' in str(name) or 'OSMesa' in str(name)): raise OSError('library not found')\n"
        "    real(self, name, *a, **k)\n"
        "ctypes.CDLL.__init__ = blind\n"
        "from vla_edge.robot.sim.simulated_arm import SimulatedArm\n"
        "from vla_edge.robot.sim.scene import random_scene\n"
        "from vla_edge.errors import CameraError\n"
        "try:\n"
        "    SimulatedArm(random_scene(0)).render('laptop')\n"
        "except CameraError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.stdout.count("\n") == 1, done.stdout + done.stderr
    assert f"apt-get install {BACKENDS['egl']}" in done.stdout
    assert "--renderer osmesa" in done.stdout


def test_counts_and_radians_are_inverse() -> None:
    counts = np.array([0, 1000, 2048, 3000, 4095, 2500], np.int32)
    assert (counts_from_radians(radians_from_counts(counts)) == counts).all()


@every_body
def test_the_committed_calibration_is_the_simulated_arms(body: ArmBody) -> None:
    rows = json.loads((REPOSITORY / f"examples/simulated-{body.name}/calibration.json").read_text())
    assert list(rows) == list(body.joints)
    for row in body.calibration():
        assert rows[row.name] == {
            "id": row.id, "drive_mode": row.drive_mode, "homing_offset": row.homing_offset,
            "range_min": row.range_min, "range_max": row.range_max,
        }  # fmt: skip
