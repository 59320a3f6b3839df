# SPDX-License-Identifier: Apache-2.0
"""Control of an SO-101 over protocol 0: moving within its limits, each word while it moves, and its faults by name.

7 V on a 12 V supply is a fault, although some such servos are made for it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.runtime.control.control_rig import HIGH, LOW, Rig, rig

from vla_edge.robot.arm_description import load_arm
from vla_edge.runtime.control.faults import fault_of
from vla_edge.runtime.control.flight_record import open_record
from vla_edge.runtime.control.recover import recover_running

pytest.importorskip("vla_edge._core")

SO101 = load_arm("so101")
LEAD = SO101.limits.tracking


@contextlib.contextmanager
def so101(bundle: Path) -> Iterator[Rig]:
    with rig(bundle, "--joint-units", "degrees", arm="so101") as made:
        yield made


def test_goals_stay_within_the_limits_and_near_the_joints_and_hold_stands_still(golden_bundle: Path) -> None:
    with so101(golden_bundle) as made:
        made.move(60)
        assert made.ask("hold").word == "done"
        held = made.wait(lambda status: status["tick"] > status["goal_moved_tick"] + 5)
        made.wave()
        later = made.pass_ticks(20)
        assert later["goals"] == held["goals"] and (later["state"], later["reason"]) == ("hold", "operator")
        ticks = [tick for tick in made.ticks() if tick["due"]]
        header = open_record(made.folder.record).header()
        facts = json.loads(made.folder.arm.read_text())
    goals = np.array([tick["goals"] for tick in ticks])
    present = np.array([tick["position"] for tick in ticks])
    assert goals.min() >= LOW and goals.max() <= HIGH and np.ptp(goals[:, 0]) > 20
    read = np.array([tick["read_result"] == 0 for tick in ticks])
    moved = np.abs(np.diff(goals, axis=0)).max() + 1
    assert np.abs(goals - present)[read].max() <= LEAD + moved, "a goal leads its joint by no more than the limit"
    assert (header["arm"], header["arm_digest"], header["joints"]) == ("so101", SO101.digest, SO101.joint_names)
    assert (facts["arm"], facts["arm_digest"]) == ("so101", SO101.digest)


def test_park_stop_and_torque_off_follow_each_other(golden_bundle: Path) -> None:
    with so101(golden_bundle) as made:
        made.store_parking_pose(2100)
        made.start_control()
        made.arm()
        made.move(20)
        assert made.ask("torque_off").word == "not_parked"
        assert made.ask("park").word == "done"
        status = made.wait(lambda status: status["reason"] == "parked")
        assert all(abs(count - 2100) <= 3 for count in status["goals"])
        assert made.ask("torque_off").word == "done"
        off = {entry["id"] for entry in made.emulator.entries("torque") if not entry["on"]}
        assert off == {1, 2, 3, 4, 5, 6}


def test_an_overloaded_servo_is_named_with_its_bits_and_recovered_without_a_reboot(golden_bundle: Path) -> None:
    with so101(golden_bundle) as made:
        made.move(10)
        made.emulator.event("overload 3")
        made.wait(lambda status: status["reason"] == "alert" and status["errors"][2] != 0)
        assert fault_of(made.status()).startswith("elbow_flex: overload")
        made.wait(lambda status: status["tick"] > status["goal_moved_tick"] + 2)
        assert recover_running(made.folder).startswith("recovered: control is in hold")
        made.arm()
        made.move(20)


@pytest.mark.parametrize(
    ("event", "reason", "joint"),
    [
        ("reboot 3", "torque", "elbow_flex"),
        ("dead 2", "reads_lost", "shoulder_lift"),
        ("voltage 4 70", "voltage", "wrist_flex"),
    ],
)
def test_what_a_servo_suffers_is_named(golden_bundle: Path, event: str, reason: str, joint: str) -> None:
    with so101(golden_bundle) as made:
        made.move(10)
        made.emulator.event(event)
        made.wait(lambda status: status["reason"] == reason and fault_of(status).startswith(joint))
