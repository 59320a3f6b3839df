# SPDX-License-Identifier: Apache-2.0
"""The simulated world as MJCF: a table with three cubes, cameras, and the body of one arm."""

from __future__ import annotations

from vla_edge.robot.sim.bodies.arm_body import ArmBody

CUBE_SIDE_M = 0.030
CUBE_COLOURS = ("red", "green", "blue")
CAMERAS = ("laptop", "phone")
"""What the policy sees through; a body has a camera `viewer` besides, which shows the arm to a person."""


def _cube(colour: str) -> str:
    half = CUBE_SIDE_M / 2
    return (
        f'<body name="{colour}_cube" pos="0 0 {half}"><freejoint name="{colour}_cube"/>'
        f'<geom class="thing" type="box" size="{half} {half} {half}" mass="0.02" material="{colour}"/></body>'
    )


def _actuators(body: ArmBody) -> str:
    return "".join(
        f'<position name="{name}" joint="{name}" kp="{servo.stiffness:.5f}"'
        f' forcerange="{-servo.stall_nm} {servo.stall_nm}" ctrlrange="{servo.low_rad:.5f} {servo.high_rad:.5f}"/>'
        for name, servo in body.servos.items()
    )


def mjcf(body: ArmBody) -> str:
    """The world with this arm. Arm parts touch cubes and table but never each other, and base and shoulder touch
    nothing: overlapping collision geometry at the base silently blocks the pan joint."""
    cameras = "".join(f'<camera name="{name}" {where}/>' for name, where in body.cameras.items())
    return f"""
<mujoco model="{body.name}">
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
    {cameras}
    {body.worldbody}
    {"".join(_cube(colour) for colour in CUBE_COLOURS)}
  </worldbody>
  <actuator>
    {_actuators(body)}
  </actuator>
</mujoco>
"""
