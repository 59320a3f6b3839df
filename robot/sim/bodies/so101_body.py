# SPDX-License-Identifier: Apache-2.0
"""The simulated SO-101 follower: every number with its public source, or marked as assumed.

Sources:
* MODEL: the robot's own simulation files, github.com/TheRobotStudio/SO-ARM100, Simulation/SO101/so101_new_calib.urdf
  and .xml (Onshape export). Its joint zeros and senses are those of LeRobot's degrees: LeRobot's kinematics take the
  follower's degrees with this URDF.
* BAM: the identified STS3215 at 7.4 V, github.com/Rhoban/bam, params/feetech_sts3215_7_4V/m1.json and
  bam/feetech/actuator.py: torque = kt / R · (7.4 V · duty − kt · ω) − viscous · ω, duty = 0.166 / rad · P · error.
  Its stall torque, 3.3 N·m, is well above the seller's 19.5 kg·cm (1.9 N·m) at this voltage.
* LEROBOT: lerobot/robots/so_follower: P gain 16, the gripper's torque limit 500 of 1000, wrist_roll's range 0..4095.
* Assumed: all shapes that are drawn and touch things; links are rounded to 0.1 mm, brought into one plane (the model's
  joint frames stand up to 18 mm beside it) and without the hand's tilt of 2.8° at roll zero; of the inertias the
  diagonals alone; what the cameras see, where the cubes stand, and the poses.
"""

from __future__ import annotations

import math

from vla_edge.robot.sim.bodies.arm_body import STOP_RAD, ArmBody, Links, Servo, chain

PAN_AT_M = (0.0388, 0.0624)
"""The pan joint in the base's frame, (forward, up): MODEL, joint shoulder_pan."""
LIFT_M = (0.0304, 0.0542)
"""From the pan joint to the lift axis: MODEL, joint shoulder_lift."""
UPPER_ARM_M = (0.0280, 0.1126)
"""MODEL, joint elbow_flex."""
FOREARM_M = (0.1349, 0.0052)
"""MODEL, joint wrist_flex."""
ROLL_AT_M = 0.0611
"""From the wrist flex axis along the roll axis to the hand: MODEL, joint wrist_roll."""
TIP_M = (0.0981, -0.0079)
"""From the hand to the tip between the jaws, which stands below the roll axis: MODEL, frame gripperframe."""
JAW_M = (0.0234, 0.0202)
"""From the hand to the moving jaw's axis: MODEL, joint gripper."""

_KT, _OHM, _VOLT, _DUTY_PER_RAD_P, _VISCOUS = 1.21164, 2.67617, 7.4, 0.166, 0.05909
_ARMATURE, _FRICTION = 0.0284, 0.0524
"""All seven: BAM."""
_P_GAIN, _GRIPPER_TORQUE = 16, 0.5
"""LEROBOT."""


def _sts3215(low_deg: float, high_deg: float, torque: float = 1.0, full_turn: bool = False) -> Servo:
    """low, high: its mechanical range. torque: share of the full one that it may give."""
    stall = _KT * _VOLT / _OHM
    low, high = math.radians(low_deg), math.radians(high_deg)
    counts = (-math.pi, math.pi * 2047 / 2048) if full_turn else (low, high)
    return Servo(
        stall * torque,
        stall * _DUTY_PER_RAD_P * _P_GAIN,
        _KT**2 / _OHM + _VISCOUS,
        _ARMATURE,
        _FRICTION,
        1000 / _KT,
        *counts,
        (low, high) if full_turn else (low + STOP_RAD, high - STOP_RAD),
    )


_SERVOS = {  # ranges: MODEL, joint limits
    "shoulder_pan": _sts3215(-110, 110),
    "shoulder_lift": _sts3215(-100, 100),
    "elbow_flex": _sts3215(-96.8, 96.8),
    "wrist_flex": _sts3215(-95, 95),
    "wrist_roll": _sts3215(-160, 160, full_turn=True),
    "gripper": _sts3215(-10, 100, _GRIPPER_TORQUE),
}


def _mass(kilograms: float, at: str, inertia: str) -> str:
    return f'<inertial mass="{kilograms}" pos="{at}" diaginertia="{inertia}"/>'


# Masses, their middles and inertias: MODEL, inertial of each link, turned into the axes used here.
_LINKS = chain(
    _SERVOS,
    ("base", f"{-PAN_AT_M[0]} 0 0", "", f"""
        {_mass(0.147, "0.0137 0 0.0335", "1.147e-4 1.361e-4 1.304e-4")}
        <geom class="shell" type="box" size="0.045 0.033 0.012" pos="-0.005 0 0.012" material="print"/>
        <geom class="shell" type="box" size="0.024 0.016 0.018" pos="0.026 0 0.042"/>"""),
    ("shoulder", f"{PAN_AT_M[0]} 0 {PAN_AT_M[1]}", "0 0 -1", f"""
        {_mass(0.100, "0.0308 0 0.0253", "8.376e-5 8.104e-5 2.398e-5")}
        <geom class="shell" type="cylinder" size="0.025 0.006" pos="0 0 0.008" material="print"/>
        <geom class="shell" type="box" size="0.013 0.018 0.023" pos="0.0304 0 0.042"/>
        <geom class="shell" type="box" size="0.024 0.022 0.005" pos="0.016 0 0.018" material="print"/>"""),
    ("upper_arm", f"{LIFT_M[0]} 0 {LIFT_M[1]}", "0 1 0", f"""
        {_mass(0.103, "0.0084 0 0.0898", "1.473e-4 1.425e-4 4.080e-5")}
        <geom class="arm" type="capsule" size="0.012" fromto="0 0 0.010 -0.006 0 0.060"/>
        <geom class="arm" type="capsule" size="0.012" fromto="-0.006 0 0.060 0.004 0 0.100"/>
        <geom class="arm" type="box" size="0.023 0.017 0.012" pos="0.0155 0 {UPPER_ARM_M[1]}" material="servo"/>"""),
    ("forearm", f"{UPPER_ARM_M[0]} 0 {UPPER_ARM_M[1]}", "0 1 0", f"""
        {_mass(0.104, "0.0981 0 0.0032", "2.874e-5 1.453e-4 1.598e-4")}
        <geom class="arm" type="capsule" size="0.011" fromto="0.012 0 0 0.095 0 0.004"/>
        <geom class="arm" type="box" size="0.023 0.017 0.012" pos="0.1224 0 0.005" material="servo"/>"""),
    ("wrist", f"{FOREARM_M[0]} 0 {FOREARM_M[1]}", "0 1 0", f"""
        {_mass(0.079, "0.0386 0.0098 0", "2.539e-5 2.100e-5 3.683e-5")}
        <geom class="arm" type="box" size="0.022 0.013 0.013" pos="0.034 0 0"/>"""),
    ("hand", f"{ROLL_AT_M} 0 0", "-1 0 0", f"""
        {_mass(0.087, "0.0252 0 0.0002", "3.451e-5 4.337e-5 2.751e-5")}
        <geom class="arm" type="box" size="0.012 0.020 0.022" pos="0.020 0 0.006" material="servo"/>
        <geom class="arm" type="box" size="0.040 0.012 0.003" pos="0.060 0 {TIP_M[1] - 0.003}"/>
        <site name="tip" pos="{TIP_M[0]} 0 {TIP_M[1]}" size="0.004" rgba="1 1 1 0"/>"""),
    ("jaw", f"{JAW_M[0]} 0 {JAW_M[1]}", "0 -1 0", f"""
        {_mass(0.012, "0.0300 0 -0.0016", "1.890e-6 5.287e-6 6.614e-6")}
        <geom class="arm" type="box" size="0.012 0.010 0.010" pos="0.006 0 0"/>
        <geom class="arm" type="box" size="0.038 0.010 0.003" pos="0.040 0 -0.006" euler="0 0.16 0"/>"""),
)  # fmt: skip

SO101 = ArmBody(
    name="so101",
    robot_type="so101_follower",
    servos=_SERVOS,
    links=Links(
        (LIFT_M[0], PAN_AT_M[1] + LIFT_M[1]),
        UPPER_ARM_M,
        FOREARM_M,
        (ROLL_AT_M + TIP_M[0], TIP_M[1]),
        pan_axis=-1,
        roll_axis=-1,
    ),
    worldbody=_LINKS,
    cameras={
        "laptop": 'pos="0.62 0.0 0.37" xyaxes="0 1 0 -0.63 0 0.777" fovy="36"',
        "phone": 'pos="0.150 0 0.70" xyaxes="0 -1 0 1 0 0" fovy="31"',
        "viewer": 'pos="0.58 -0.46 0.40" xyaxes="0.75 0.66 0 -0.34 0.39 0.86" fovy="38"',
    },
    near_m=0.15,
    far_m=0.25,
    rest_rad=(0.0, -1.2, 1.1, 0.8, 0.0, 0.2),
    ready_rad=(0.0, -0.35, 0.45, 1.0, 0.0, 0.2),
)
