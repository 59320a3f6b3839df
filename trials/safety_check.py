# SPDX-License-Identifier: Apache-2.0
"""The safety item of the deployment checklist: hostile chunks through the control core, on its own clock."""

from __future__ import annotations

import numpy as np

from vla_edge.contract import Chunk, ChunkKind, Command, JointCalibration
from vla_edge.core import load_core
from vla_edge.errors import CoreError
from vla_edge.robot.arm_description import ArmDescription
from vla_edge.robot.joint_calibration import JointCalibrations, JointUnits
from vla_edge.runtime.control.control_process import limits_of
from vla_edge.runtime.control.control_settings import ControlSettings, period_ns_of
from vla_edge.trials.deployment import FAILED, NOT_RUN, PASSED, Item

TICKS = 600


def any_calibration(arm: ArmDescription) -> JointCalibrations:
    """One that such an arm may have: each joint half a turn about the middle."""
    middle, quarter = arm.counts_per_turn // 2, arm.counts_per_turn // 4
    joints = tuple(
        JointCalibration(joint.name, joint.id, 0, 0, middle - quarter, middle + quarter, arm.counts_per_turn)
        for joint in arm.joints
    )
    return JointCalibrations(joints, "half a turn for each joint")


def check_safety(arm: ArmDescription, joints: int, hz: float) -> Item:
    """NaN, infinite, huge and random chunks for `TICKS` ticks through schedule and guard: no goal may leave the soft
    limits or move faster than the arm's velocity limit allows, and none may come of a value that is not finite."""
    name = "safety limits"
    if joints != len(arm.joints):
        found = f"the policy has {joints} joints, {arm.title} has {len(arm.joints)}"
        return Item(name, NOT_RUN, found, "give --robot with the arm that the policy moves")
    try:
        core = load_core()
    except CoreError as error:
        found, _, fix = str(error).partition("; ")
        return Item(name, NOT_RUN, found, fix)
    period_ns = period_ns_of(hz)
    limits = limits_of(arm, any_calibration(arm), JointUnits.DEGREES)
    settings = ControlSettings(limits, period_ns, 1, "0" * 64)
    pilot = core.Pilot(settings)
    generator = np.random.default_rng(0)
    goals, broken, refused = np.full(joints, arm.counts_per_turn // 2), [], 0
    for tick in range(TICKS):
        chunks = []
        if tick % 10 == 5:
            wild = generator.choice([np.nan, np.inf, -1e30, 1e6, -400.0, 90.0], (20, joints))
            finite = generator.uniform(-300, 300, (20, joints))
            actions = np.ascontiguousarray(wild if tick % 20 == 5 else finite, np.float32)
            chunks = [Chunk(ChunkKind.MOVING, 1, "0" * 64, tick, tick, tick * period_ns, actions)]
        output = pilot.tick(
            tick,
            tick * period_ns,
            goals.tolist(),
            chunks,
            command=int(Command.ARM if tick == 0 else Command.NONE),
            p99_ns=period_ns,
        )
        refused += output["verdict"].startswith("refused") or any(name != "taken" for name in output["chunks"])
        if not output["write"]:
            continue
        new = np.array(output["goals"])
        for joint, (low, high, velocity, _, _) in enumerate(pilot.step_limits):
            if not low <= new[joint] <= high or abs(int(new[joint]) - int(goals[joint])) >= velocity + 1:
                broken.append(f"{arm.joint_names[joint]} at tick {tick}")
        goals = new
    found = (
        f"{arm.title}, {TICKS} ticks of hostile chunks: {len(broken)} limits broken, {refused} ticks with something "
        "refused"
    )
    if broken or not refused:
        what = broken[0] if broken else "nothing was refused"
        return Item(name, FAILED, f"{found} ({what})", "do not deploy; report this with the build's version")
    return Item(name, PASSED, found)
