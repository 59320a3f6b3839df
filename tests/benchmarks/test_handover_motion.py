# SPDX-License-Identifier: Apache-2.0
"""The numbers of the hand-over table, on motion made by hand, and one real episode of the way that ships."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vla_edge.benchmarks.handover_motion import (
    BEFORE,
    HZ,
    MOVE_TICK,
    TICKS,
    TURN_TICK,
    WAYS,
    Motion,
    Way,
    above,
    half_way,
    measure,
    missed,
    row_of,
    table,
)
from vla_edge.bundle import open_bundle
from vla_edge.engines.engine import EngineOptions, load_engine
from vla_edge.robot.sim.render import rendering_fault

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "reach-cube" / "bundle"
FAULT = rendering_fault()


def motion(positions=None, goals=None, tips=None, degrees=2.0) -> Motion:
    nothing = np.zeros((TICKS, 6))
    return Motion(
        nothing if positions is None else positions,
        nothing if goals is None else goals,
        np.zeros((TICKS, 3)) if tips is None else tips,
        np.zeros(3),
        TURN_TICK,
        MOVE_TICK,
        degrees,
        clamped=0.1,
    )


def test_tremble_is_what_the_worst_joint_does_at_rest_and_the_gripper_does_not_count():
    positions = np.zeros((TICKS, 6))
    positions[:60, 1] = np.linspace(0, 50, 60)  # the way there
    positions[60:, 1] = 50
    positions[100:TURN_TICK:2, 2] = 1.25
    positions[100:TURN_TICK:2, 5] = 9.0
    assert motion(positions).tremble_deg == 1.25


def test_above_12_hz_counts_the_fast_part_alone():
    time_s = np.arange(900) / HZ
    slow, fast = np.sin(2 * np.pi * 3 * time_s), np.sin(2 * np.pi * 14 * time_s)
    found = above(np.stack([slow, slow + 2 * fast], axis=1), 12.0)
    assert found == pytest.approx([0, 2 / np.sqrt(2)], abs=1e-6)


def test_the_arm_settles_when_the_tip_comes_near_for_good():
    tips = np.zeros((TICKS, 3))
    tips[:20, 0], tips[25, 0] = 0.2, 0.04
    assert motion(tips=tips).settling_s == pytest.approx(26 / HZ)


def test_half_way_is_where_goals_stay_beyond_the_middle():
    goals = np.zeros((TICKS, 5))
    goals[MOVE_TICK + 4 :, 0] = 10
    goals[MOVE_TICK + 6, 0] = 4  # back once
    assert half_way(goals, MOVE_TICK) == 7


def test_a_turn_that_is_followed_by_half_counts_half():
    goals = np.zeros((TICKS, 6))
    goals[TURN_TICK + 5 :, 0] = -1.0
    assert motion(goals=goals, degrees=-2.0).followed == pytest.approx(0.5)


def test_a_way_that_trembles_fails_late_or_worse_is_named():
    before = {"tremble_deg_p90": 10.0, "success": 0.99, "reaction_ms_p50": 333.0}
    assert missed(before, {"tremble_deg_p90": 1.4, "success": 0.975, "reaction_ms_p50": 366.0}) == []
    bad = missed(before, {"tremble_deg_p90": 1.6, "success": 0.96, "reaction_ms_p50": 400.0})
    assert bad == ["it trembles by 1.6° (p90)", "it reaches 96.0%", "it reacts 67 ms later"]


@pytest.mark.skipif(FAULT is not None, reason=str(FAULT))
@pytest.mark.skipif(not EXAMPLE.is_dir(), reason="examples/reach-cube/bundle is not there")
def test_kept_noise_and_the_default_hand_over_rest_where_fresh_noise_trembles():
    bundle, engine = open_bundle(EXAMPLE), load_engine("ort", EngineOptions(threads=1))
    ways = {way.name: way for way in WAYS}
    shipped = next(way for way in WAYS if way == Way(way.name))
    seeds = range(330_000, 330_004)
    rows = {name: row_of(measure(bundle, engine, ways[name], seeds), None) for name in (BEFORE, shipped.name)}
    before, after = rows.values()
    assert after["success"] == before["success"] == 1
    assert after["tremble_deg_p50"] < before["tremble_deg_p50"] / 3
    assert after["jerk_deg_s3"] < before["jerk_deg_s3"] and shipped.name in table(rows)
