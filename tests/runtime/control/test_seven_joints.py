# SPDX-License-Identifier: Apache-2.0
"""A made-up arm of seven joints through the whole control loop, by its description alone: armed, moved by chunks, held,
parked, let go, its record read back."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.robot.test_so101 import SEVEN
from tests.runtime.control.control_rig import HIGH, LOW, rig

from vla_edge.bundle import open_bundle, write_manifest
from vla_edge.robot.arm_description import load_arm
from vla_edge.runtime.control.flight_record import open_record

pytest.importorskip("vla_edge._core")


def test_an_arm_of_seven_joints_is_armed_moved_held_parked_and_recorded(golden_bundle: Path, tmp_path: Path) -> None:
    description = tmp_path / "seven.yaml"
    description.write_text(SEVEN)
    arm = load_arm(str(description))
    bundle = tmp_path / "bundle"
    shutil.copytree(golden_bundle, bundle)
    manifest = open_bundle(bundle).manifest
    seven = replace(manifest.policy, state_dim=7, action_dim=7)
    write_manifest(bundle, replace(manifest, joints=arm.joint_names, policy=seven))
    with rig(bundle, arm=str(description), armed=False) as made:
        made.store_parking_pose(2100)
        made.start_control()
        made.arm()
        made.move(40)
        assert made.ask("hold").word == "done"
        held = made.wait(lambda status: status["tick"] > status["goal_moved_tick"] + 5)
        made.wave()
        assert made.pass_ticks(10)["goals"] == held["goals"] and len(held["goals"]) == 7
        assert made.ask("park").word == "done"
        assert made.wait(lambda status: status["reason"] == "parked")["goals"] == (2100,) * 7
        assert made.ask("torque_off").word == "done"
        off = {entry["id"] for entry in made.emulator.entries("torque") if not entry["on"]}
        assert off == set(arm.ids.values()) == set(range(11, 18))
        made.arm()
        made.move(8)
        goals = np.array([goal for _, goal in made.goals()])
        assert goals.shape[1] == 7 and goals.min() >= LOW and goals.max() <= HIGH and np.ptp(goals, axis=0).min() > 20
        made.stop()
        record = open_record(made.folder.record)
        assert record.header()["joints"] == arm.joint_names and record.header()["arm_digest"] == arm.digest
        replay = record.replay()
        assert replay["ticks"] > 40 and replay["differing"] == 0
        ticks = made.ticks()
        assert made.given(ticks) > 40 and all(len(tick["goals"]) == 7 for tick in ticks)
