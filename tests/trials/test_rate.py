# SPDX-License-Identifier: Apache-2.0
"""The speed of a policy does not depend on the rate of control: the same scenes at 15, 30, 60 and 90 Hz."""

from __future__ import annotations

import numpy as np
import pytest
from tests.trials.scripted_planner import ScriptedPlanner

from vla_edge.robot.sim.render import rendering_fault
from vla_edge.robot.sim.scene import random_scene
from vla_edge.robot.sim.simulated_arm import SimOptions, SimulatedArm
from vla_edge.runtime.control.handover import HandOver, HandOverOptions
from vla_edge.trials.lockstep import LockstepOptions
from vla_edge.trials.reach_task import reach, wanted_colour

FPS, LOOKS = 30, 180
"""Actions a second; looks at the arm a second, a multiple of every rate."""
SEEDS = range(70_000, 70_020)
RATES = (15, 30, 60, 90)

FAULT = rendering_fault()
pytestmark = pytest.mark.skipif(FAULT is not None, reason=str(FAULT))


@pytest.fixture(scope="module")
def arm():
    made = SimulatedArm(random_scene(0), SimOptions())
    yield made
    made.close()


def time_to_80_percent(arm: SimulatedArm, seed: int, hz: int, fps: float | None) -> float:
    """Seconds from arming until a fifth of the way to the cube is left. An inference takes 67 ms, and the next one
    begins 333 ms after it began, whatever the rate."""
    tips: list[np.ndarray] = []
    options = LockstepOptions(
        {},
        hz,
        fps,
        seconds=3.0,
        delay_ticks=2 * hz // FPS,
        replan_ticks=10 * hz // FPS,
        handover=HandOverOptions(HandOver.REPLACE),
        watch=lambda arm, look: tips.append(arm.tip),
        watches=LOOKS // hz,
    )
    reach(arm, ScriptedPlanner(arm), seed, wanted_colour(seed), options)
    path = np.array(tips)
    left = np.linalg.norm(path - path[-1], axis=1)
    return float(np.argmax(left <= 0.2 * left[0]) + 1) / LOOKS


@pytest.fixture(scope="module")
def times(arm):
    """Seconds [seed] by rate, with the hand-over that needs no policy."""
    return {hz: np.array([time_to_80_percent(arm, seed, hz, FPS) for seed in SEEDS]) for hz in RATES}


@pytest.mark.parametrize("hz", RATES)
def test_the_arm_gets_80_percent_of_the_way_in_the_same_time_at_every_rate(times, hz):
    """Median of 20 paired runs, within the larger of 5 % and one control tick."""
    apart = np.median(np.abs(times[hz] - times[FPS]))
    assert apart <= max(0.05 * np.median(times[FPS]), 1 / hz), times


def test_one_action_each_tick_would_make_the_policy_slower_at_15_hz(arm, times):
    """What the test above would see if control took the data's actions at its own rate."""
    found = [time_to_80_percent(arm, seed, 15, None) for seed in SEEDS[:5]]
    assert np.median(found) > 1.4 * np.median(times[15][:5])
