# SPDX-License-Identifier: Apache-2.0
"""The simulated Koch arm as MJCF, with its lengths and servo figures.

Frame: x forward, y left, z up, metres, origin on the table under the pan axis.
At zero the upper arm points up, forearm and hand point forward; positive
shoulder_lift, elbow_flex and wrist_flex turn the links forward and down.

The servos are modelled from their data sheets as a DC motor behind a P
controller: torque = stall · (P/128 · error_counts / 885) − (stall / no_load) · ω,
clipped at the stall torque. So they sag under load and lag while moving, as
the real ones do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

SHOULDER_HEIGHT_M = 0.085
UPPER_ARM_M = 0.108
FOREARM_M = 0.100
HAND_M = 0.130
"""Wrist flex axis to the tip between the closed jaws."""

CUBE_SIDE_M = 0.030
CUBE_COLOURS = ("red", "green", "blue")
CAMERAS = ("laptop", "phone")

COUNTS_PER_TURN = 4096
ZERO_COUNT = 2048
"""Servo count at which a simulated joint stands at 0 rad."""

_PWM_LIMIT = 885
_FULL_PWM_PER_GAIN_COUNT = 1 / (128 * _PWM_LIMIT)


@dataclass(frozen=True, slots=True)
class Servo:
    """Stall torque N·m, no-load speed rad/s (data sheet), P gain as written to the servo, range in rad."""

    stall_nm: float
    no_load_rad_s: float
    p_gain: int
    low_rad: float
    high_rad: float

    @property
    def stiffness(self) -> float:
        """Torque per position error, N·m/rad."""
        return self.stall_nm * self.p_gain * _FULL_PWM_PER_GAIN_COUNT * COUNTS_PER_TURN / (2 * math.pi)

    @property
    def damping(self) -> float:
        """Torque lost per speed (back-EMF line of the motor), N·m·s/rad."""
        return self.stall_nm / self.no_load_rad_s


def _xl430(low_deg: float, high_deg: float) -> Servo:
    return Servo(1.4, 61 * 2 * math.pi / 60, 640, math.radians(low_deg), math.radians(high_deg))


def _xl330(low_deg: float, high_deg: float, p_gain: int = 400) -> Servo:
    return Servo(0.52, 103 * 2 * math.pi / 60, p_gain, math.radians(low_deg), math.radians(high_deg))


SERVOS = {
    "shoulder_pan": _xl430(-110, 110),
    "shoulder_lift": _xl430(-95, 95),
    "elbow_flex": _xl330(-95, 95, p_gain=1500),
    "wrist_flex": _xl330(-100, 100),
    "wrist_roll": _xl330(-150, 150),
    "gripper": _xl330(0, 70),
}

_STOP_RAD = 0.02
"""The mechanical stops give way a little; they stand this far inside, so that an arm that leans on one is in range."""

_ARMATURE = {1.4: 0.006, 0.52: 0.0015}
_FRICTION = {1.4: 0.02, 0.52: 0.006}


def _joint(name: str, axis: str) -> str:
    servo = SERVOS[name]
    return (
        f'<joint name="{name}" axis="{axis}" range="{servo.low_rad + _STOP_RAD:.5f} {servo.high_rad - _STOP_RAD:.5f}"'
        f' damping="{servo.damping:.5f}" armature="{_ARMATURE[servo.stall_nm]}" '
        f'frictionloss="{_FRICTION[servo.stall_nm]}"/>'
    )


def _actuator(name: str) -> str:
    servo = SERVOS[name]
    return (
        f'<position name="{name}" joint="{name}" kp="{servo.stiffness:.5f}"'
        f' forcerange="{-servo.stall_nm} {servo.stall_nm}" ctrlrange="{servo.low_rad:.5f} {servo.high_rad:.5f}"/>'
    )


def _cube(colour: str) -> str:
    half = CUBE_SIDE_M / 2
    return (
        f'<body name="{colour}_cube" pos="0 0 {half}"><freejoint name="{colour}_cube"/>'
        f'<geom class="thing" type="box" size="{half} {half} {half}" mass="0.02" material="{colour}"/></body>'
    )


# Arm parts touch cubes and table but never each other, and base and shoulder touch nothing: overlapping collision
# geometry at the base silently blocks the pan joint.
MJCF = f"""
<mujoco model="koch">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="0.002" integrator="implicitfast"/>
  <visual>
    <global offwidth="1280" offheight="960"/>
    <quality shadowsize="0" offsamples="4"/>
    <headlight ambient="0.45 0.45 0.45" diffuse="0.45 0.45 0.45" specular="0.05 0.05 0.05"/>
  </visual>
  <asset>
    <material name="red" rgba="0.85 0.10 0.10 1"/>
    <material name="green" rgba="0.10 0.65 0.15 1"/>
    <material name="blue" rgba="0.10 0.20 0.85 1"/>
    <material name="print" rgba="0.90 0.55 0.15 1"/>
    <material name="servo" rgba="0.13 0.13 0.14 1"/>
    <material name="wood" rgba="0.78 0.72 0.62 1"/>
    <material name="room" rgba="0.42 0.45 0.50 1"/>
  </asset>
  <default>
    <default class="thing"><geom contype="2" conaffinity="3" friction="0.8 0.01 0.001"/></default>
    <default class="arm"><geom contype="1" conaffinity="2" material="print"/></default>
    <default class="shell"><geom contype="0" conaffinity="0" material="servo"/></default>
  </default>
  <worldbody>
    <light directional="true" pos="0.3 0.3 1.5" dir="-0.2 -0.2 -1" diffuse="0.22 0.22 0.22" specular="0 0 0"/>
    <geom class="shell" name="room" type="plane" size="4 4 0.1" pos="0 0 -0.4" material="room"/>
    <geom class="thing" name="table" type="box" size="0.40 0.40 0.02" pos="0.20 0 -0.02" material="wood"/>
    <camera name="laptop" pos="0.56 0.0 0.34" xyaxes="0 1 0 -0.63 0 0.777" fovy="36"/>
    <camera name="phone" pos="0.125 0 0.62" xyaxes="0 -1 0 1 0 0" fovy="31"/>
    <camera name="viewer" pos="0.52 -0.42 0.36" xyaxes="0.75 0.66 0 -0.34 0.39 0.86" fovy="38"/>
    <body name="base">
      <geom class="shell" type="box" size="0.035 0.04 0.02" pos="-0.01 0 0.02" mass="0.3"/>
      <body name="shoulder" pos="0 0 0.04">
        {_joint("shoulder_pan", "0 0 1")}
        <geom class="shell" type="cylinder" size="0.024 0.02" pos="0 0 0.022" mass="0.08" material="print"/>
        <body name="upper_arm" pos="0 0 {SHOULDER_HEIGHT_M - 0.04}">
          {_joint("shoulder_lift", "0 1 0")}
          <geom class="shell" type="box" size="0.016 0.022 0.018" pos="0 0 0" mass="0.05"/>
          <geom class="arm" type="capsule" size="0.011" fromto="0 0 0.025 0 0 {UPPER_ARM_M - 0.015}" mass="0.04"/>
          <body name="forearm" pos="0 0 {UPPER_ARM_M}">
            {_joint("elbow_flex", "0 1 0")}
            <geom class="shell" type="box" size="0.012 0.017 0.012" pos="0 0 0" mass="0.022"/>
            <geom class="arm" type="capsule" size="0.009" fromto="0.018 0 0 {FOREARM_M - 0.015} 0 0" mass="0.03"/>
            <body name="wrist" pos="{FOREARM_M} 0 0">
              {_joint("wrist_flex", "0 1 0")}
              <geom class="arm" type="box" size="0.012 0.017 0.012" mass="0.022" material="servo"/>
              <body name="hand" pos="0.030 0 0">
                {_joint("wrist_roll", "1 0 0")}
                <geom class="arm" type="box" size="0.018 0.016 0.012" pos="0.006 0 0" mass="0.022" material="servo"/>
                <geom class="arm" type="box" size="0.035 0.003 0.009" pos="0.063 -0.006 0" mass="0.012"/>
                <site name="tip" pos="{HAND_M - 0.030} 0 0" size="0.004" rgba="1 1 1 0"/>
                <body name="jaw" pos="0.024 0.008 0">
                  {_joint("gripper", "0 0 1")}
                  <geom class="arm" type="box" size="0.037 0.003 0.009" pos="0.037 -0.002 0" mass="0.012"/>
                </body>
              </body>
            </body>
          </body>
        </body>
      </body>
    </body>
    {"".join(_cube(colour) for colour in CUBE_COLOURS)}
  </worldbody>
  <actuator>
    {"".join(_actuator(name) for name in SERVOS)}
  </actuator>
</mujoco>
"""
