# SPDX-License-Identifier: Apache-2.0
"""The gate on the trained reaching policy, in small; `vla_edge.benchmarks.cache_tradeoff` is the long form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vla_edge.benchmarks.cache_tradeoff import planted_moves
from vla_edge.benchmarks.handover_motion import plan_then_move
from vla_edge.benchmarks.moving_episodes import move_cube, phase_frames
from vla_edge.bundle import Bundle, open_bundle
from vla_edge.engines.engine import Engine, EngineOptions, load_engine
from vla_edge.robot.sim.mjcf import CUBE_COLOURS
from vla_edge.robot.sim.render import rendering_fault
from vla_edge.robot.sim.scene import random_scene
from vla_edge.robot.sim.simulated_arm import SimOptions, SimulatedArm
from vla_edge.runtime.inference.cache import CacheMode
from vla_edge.runtime.inference.scene_gate import GateSettings

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "reach-cube" / "bundle"
FAULT = rendering_fault()
pytestmark = [
    pytest.mark.skipif(FAULT is not None, reason=str(FAULT)),
    pytest.mark.skipif(not EXAMPLE.is_dir(), reason="examples/reach-cube/bundle is not there"),
]
# What vla-calibrate gate chose for this bundle (benchmarks/results/cache_tradeoff.json).
CALIBRATED = GateSettings("pooled", threshold=0.99956, still_mean=0.885, still_worst=16.8, max_reuse=40, max_age_s=5.0)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return open_bundle(EXAMPLE)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return load_engine("ort", EngineOptions(threads=1))


@pytest.fixture(scope="module")
def arm():
    made = SimulatedArm(random_scene(0), SimOptions(96, 128))
    yield made
    made.close()


@pytest.mark.parametrize("policy", [CacheMode.STILL, CacheMode.GATED])
def test_a_cube_that_is_moved_at_rest_is_noticed_at_the_first_look(bundle, engine, policy):
    found = planted_moves(bundle, engine, CALIBRATED, policy, count=10, named=True)
    assert found.noticed == (1,) * 10
    assert policy is CacheMode.STILL or sum(found.changed) >= 9


def test_limits_that_are_far_too_loose_miss_moves_so_the_count_can_fail(bundle, engine):
    loose = GateSettings("pooled", threshold=-1, still_mean=255, still_worst=255, max_reuse=5, max_age_s=5.0)
    assert planted_moves(bundle, engine, loose, CacheMode.STILL, count=2, named=True).missed == 2


def test_a_host_of_3_s_a_chunk_plans_then_moves_and_never_latches_hold(bundle, engine):
    told = plan_then_move(bundle, engine, range(330_000, 330_001))
    assert told["latched_ticks"] == 0 and told["rhythm"] == "plan-then-move"
    # 25 actions and 90 ticks of inference: 22 % of the time in motion.
    assert 0.15 < told["share_in_state_moving"] < 0.25
    assert told["chunks"]["taken"] >= 5


def test_a_moved_cube_keeps_clear_of_the_others_and_the_arm_stays(arm):
    for seed in range(20):
        arm.reset(random_scene(seed))
        before, joints = arm.configuration, arm.positions
        distance = move_cube(arm, "green", np.random.default_rng(seed))
        after = arm.configuration
        places = {
            colour: after[(start := int(arm.model.joint(f"{colour}_cube").qposadr[0])) : start + 2]
            for colour in CUBE_COLOURS
        }
        assert 0.02 <= distance <= 0.06 and np.array_equal(arm.positions, joints)
        assert min(np.linalg.norm(places["green"] - places[other]) for other in ("red", "blue")) >= 0.05
        assert np.count_nonzero(after != before) <= 2, "one cube, x and y"


def test_an_episode_has_still_and_moving_phases_and_two_moves(arm):
    frames = list(phase_frames(arm, 7, phase_s=1.5))
    assert len(frames) == 75 and frames[0].moves == 0 and frames[-1].moves == 2
    moving = [frame.moving for frame in frames]
    assert not any(moving[2:14]) and any(moving[15:30]) and any(moving[45:60])
