# SPDX-License-Identifier: Apache-2.0
"""The simulated Koch: lengths in the proportions of the printed arm, servo figures from the data sheets.

The servos follow torque = stall · (P/128 · error_counts / 885) − (stall / no_load) · ω.
"""

from __future__ import annotations

import math

from vla_edge.robot.sim.bodies.arm_body import RADIANS_PER_COUNT, STOP_RAD, ArmBody, Links, Servo, chain

SHOULDER_HEIGHT_M = 0.085
UPPER_ARM_M = 0.108
FOREARM_M = 0.100
HAND_M = 0.130
"""Wrist flex axis to the tip between the closed jaws."""

_FULL_PWM_PER_GAIN_COUNT = 1 / (128 * 885)


def _servo(
    stall: tuple[float, float], no_load_rpm: float, p_gain: int, drag: tuple[float, float], degrees: tuple[float, float]
) -> Servo:
    """stall: torque N·m and current mA, with the no-load speed from the data sheet. drag: armature and friction."""
    low, high = (math.radians(angle) for angle in degrees)
    stall_nm, stall_ma = stall
    return Servo(
        stall_nm,
        stall_nm * p_gain * _FULL_PWM_PER_GAIN_COUNT / RADIANS_PER_COUNT,
        stall_nm / (no_load_rpm * 2 * math.pi / 60),
        *drag,
        stall_ma / stall_nm,
        low,
        high,
        (low + STOP_RAD, high - STOP_RAD),
    )


def _xl430(low_deg: float, high_deg: float) -> Servo:
    return _servo((1.4, 1400), 61, 640, (0.006, 0.02), (low_deg, high_deg))


def _xl330(low_deg: float, high_deg: float, p_gain: int = 400) -> Servo:
    return _servo((0.52, 1470), 103, p_gain, (0.0015, 0.006), (low_deg, high_deg))


_SERVOS = {
    "shoulder_pan": _xl430(-110, 110),
    "shoulder_lift": _xl430(-95, 95),
    "elbow_flex": _xl330(-95, 95, p_gain=1500),
    "wrist_flex": _xl330(-100, 100),
    "wrist_roll": _xl330(-150, 150),
    "gripper": _xl330(0, 70),
}


_LINKS = chain(
    _SERVOS,
    ("base", "0 0 0", "", """
        <geom class="shell" type="box" size="0.035 0.04 0.02" pos="-0.01 0 0.02" mass="0.3"/>"""),
    ("shoulder", "0 0 0.04", "0 0 1", """
        <geom class="shell" type="cylinder" size="0.024 0.02" pos="0 0 0.022" mass="0.08" material="print"/>"""),
    ("upper_arm", f"0 0 {SHOULDER_HEIGHT_M - 0.04}", "0 1 0", f"""
        <geom class="shell" type="box" size="0.016 0.022 0.018" pos="0 0 0" mass="0.05"/>
        <geom class="arm" type="capsule" size="0.011" fromto="0 0 0.025 0 0 {UPPER_ARM_M - 0.015}" mass="0.04"/>"""),
    ("forearm", f"0 0 {UPPER_ARM_M}", "0 1 0", f"""
        <geom class="shell" type="box" size="0.012 0.017 0.012" pos="0 0 0" mass="0.022"/>
        <geom class="arm" type="capsule" size="0.009" fromto="0.018 0 0 {FOREARM_M - 0.015} 0 0" mass="0.03"/>"""),
    ("wrist", f"{FOREARM_M} 0 0", "0 1 0", """
        <geom class="arm" type="box" size="0.012 0.017 0.012" mass="0.022" material="servo"/>"""),
    ("hand", "0.030 0 0", "1 0 0", f"""
        <geom class="arm" type="box" size="0.018 0.016 0.012" pos="0.006 0 0" mass="0.022" material="servo"/>
        <geom class="arm" type="box" size="0.035 0.003 0.009" pos="0.063 -0.006 0" mass="0.012"/>
        <site name="tip" pos="{HAND_M - 0.030} 0 0" size="0.004" rgba="1 1 1 0"/>"""),
    ("jaw", "0.024 0.008 0", "0 0 1", """
        <geom class="arm" type="box" size="0.037 0.003 0.009" pos="0.037 -0.002 0" mass="0.012"/>"""),
)  # fmt: skip

KOCH = ArmBody(
    name="koch",
    robot_type="koch",
    servos=_SERVOS,
    links=Links((0.0, SHOULDER_HEIGHT_M), (0.0, UPPER_ARM_M), (FOREARM_M, 0.0), (HAND_M, 0.0)),
    worldbody=_LINKS,
    cameras={
        "laptop": 'pos="0.56 0.0 0.34" xyaxes="0 1 0 -0.63 0 0.777" fovy="36"',
        "phone": 'pos="0.125 0 0.62" xyaxes="0 -1 0 1 0 0" fovy="31"',
        "viewer": 'pos="0.52 -0.42 0.36" xyaxes="0.75 0.66 0 -0.34 0.39 0.86" fovy="38"',
    },
    near_m=0.13,
    far_m=0.215,
    rest_rad=(0.0, -0.9, 0.95, 0.75, 0.0, 0.2),
    ready_rad=(0.0, 0.1, 0.1, 1.0, 0.0, 0.2),
)
