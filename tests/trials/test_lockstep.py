# SPDX-License-Identifier: Apache-2.0
"""The pipeline on a simulated clock, with the scripted expert in place of a policy."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.trials.scripted_planner import ScriptedPlanner

from vla_edge.contract import Command, Observation
from vla_edge.core import load_core
from vla_edge.errors import ConfigError
from vla_edge.robot.arm_description import load_arm
from vla_edge.robot.joint_calibration import JointCalibrations, JointUnits
from vla_edge.robot.sim.bodies.arm_body import counts_from_radians, radians_from_counts
from vla_edge.robot.sim.bodies.so101_body import SO101
from vla_edge.robot.sim.mjcf import CUBE_COLOURS
from vla_edge.robot.sim.render import rendering_fault
from vla_edge.robot.sim.scene import random_scene
from vla_edge.robot.sim.simulated_arm import SimOptions, SimulatedArm
from vla_edge.runtime.control.control_process import limits_of
from vla_edge.runtime.control.control_settings import ControlSettings
from vla_edge.trials.lockstep import LockstepOptions, run_lockstep
from vla_edge.trials.reach_expert import CHUNK, expert_chunk, record_episode
from vla_edge.trials.reach_task import new_arm, other_colour, reach, wanted_colour

FAULT = rendering_fault()
pytestmark = pytest.mark.skipif(FAULT is not None, reason=str(FAULT))

SIZES = {"laptop": (48, 64)}


@pytest.fixture(scope="module")
def arm() -> SimulatedArm:
    return SimulatedArm(random_scene(0), SimOptions(height=48, width=64))


@pytest.mark.parametrize(
    "options",
    [
        LockstepOptions(SIZES, delay_ticks=0, replan_ticks=5),
        LockstepOptions(SIZES, delay_ticks=5, replan_ticks=25),
        LockstepOptions(SIZES, delay_ticks=30, replan_ticks=30, plan_then_move=True),
    ],
    ids=["fast host", "overlapped", "plan, then move"],
)
def test_the_scripted_expert_reaches_the_cube_it_is_told(arm: SimulatedArm, options: LockstepOptions) -> None:
    for seed in range(3):
        told = wanted_colour(seed)
        outcome = reach(arm, ScriptedPlanner(arm), seed, told, options)
        # The expert makes up for the servos' sag; friction leaves less than 2 mm.
        assert outcome.distance_m[told] < 0.002
        assert [colour for colour in CUBE_COLOURS if outcome.reached(colour)] == [told]
        assert set(outcome.result.chunks) <= {"taken", "moved"}
        assert outcome.result.chunks["taken"] >= 2


def test_the_scripted_expert_reaches_with_the_so101_too() -> None:
    """The same guard, recursion and task with another body."""
    options = LockstepOptions(SIZES, delay_ticks=5, replan_ticks=25)
    arm = new_arm(options, SO101)
    for seed in range(3):
        told = wanted_colour(seed)
        outcome = reach(arm, ScriptedPlanner(arm), seed, told, options)
        assert outcome.distance_m[told] < 0.003  # what friction leaves, 0.006 rad a joint
        assert [colour for colour in CUBE_COLOURS if outcome.reached(colour)] == [told]
    episode = record_episode(arm, 7, 4)
    assert episode.state.shape == (4, len(SO101.joints))
    assert np.abs(SO101.radians(episode.state.astype(np.float64))[:, :5]).max() < 2.0
    arm.close()


def test_an_arm_that_holds_150_grams_at_arms_length_sinks_by_less_than_a_degree_in_a_minute() -> None:
    """Stretched out over the table's edge, where they pull the most; the hold leads no goal back that carries them."""
    arm = SimulatedArm(random_scene(0))
    arm.model.geom("table").contype = arm.model.geom("table").conaffinity = 0
    pose = np.radians([0, 78, -84, 0, 0, 20])
    arm.place(pose)
    arm.set_goals(pose + arm.sag(pose))
    arm.hang(0.15)
    limits = limits_of(
        load_arm("koch"), JointCalibrations(arm.body.calibration(), "the simulated arm"), JointUnits.DEGREES
    )
    period_ns = 10**9 // 30
    pilot = load_core().Pilot(ControlSettings(limits, period_ns, 1, "0" * 64))
    stood = []
    for tick in range(62 * 30):
        command = {1: Command.ARM, 30: Command.HOLD}.get(tick, Command.NONE)
        counts = [int(count) for count in counts_from_radians(arm.positions)]
        told = pilot.tick(tick, tick * period_ns, counts, (), command=int(command))
        if told["write"]:
            arm.set_goals(radians_from_counts(np.array(told["goals"], np.int32)))
        arm.step(1 / 30)
        stood.append(np.degrees(arm.positions))
    assert (told["state"], told["reason"], told["latched"]) == ("hold", "operator", True)
    assert abs(arm.torques[1]) > 0.6  # N·m: it does carry them
    assert abs(stood[60] - stood[-1]).max() < 1.0


def test_another_instruction_leads_to_another_cube(arm: SimulatedArm) -> None:
    options = LockstepOptions(SIZES, delay_ticks=2, replan_ticks=25, seconds=4)
    for seed in range(3):
        outcome = reach(arm, ScriptedPlanner(arm), seed, other_colour(seed), options)
        assert not outcome.reached(wanted_colour(seed))
        assert outcome.reached(other_colour(seed))


def test_wanted_colours_are_spread_evenly_and_the_other_is_never_the_same() -> None:
    wanted = [wanted_colour(seed) for seed in range(300)]
    for colour in CUBE_COLOURS:
        assert 70 < wanted.count(colour) < 130
    assert all(other_colour(seed) != wanted_colour(seed) for seed in range(300))


def test_the_same_episode_is_repeated_bit_for_bit(arm: SimulatedArm) -> None:
    options = LockstepOptions(SIZES, delay_ticks=3, replan_ticks=10, seconds=2)
    first, second = (reach(arm, ScriptedPlanner(arm), 4, "red", options).result.tips for _ in range(2))
    assert first.tobytes() == second.tobytes()


class Ramp:
    """Moves the pan joint by one degree a tick from where the first observation saw it."""

    def __init__(self) -> None:
        self.start: NDArray[np.float32] | None = None
        self.seen: list[tuple[int, float]] = []

    def reset(self, seed: int, options: LockstepOptions) -> None:
        self.start = None

    def plan(self, observation: Observation, now_ns: int) -> NDArray[np.float32]:
        if self.start is None:
            self.start = observation.joints.positions.copy()
        actions = np.tile(self.start, (CHUNK, 1))
        actions[:, 0] += observation.joints.tick + np.arange(CHUNK)
        self.seen.append((observation.joints.tick, float(observation.joints.positions[0])))
        return actions


def note_pan(track: list[float], arm: SimulatedArm, tick: int) -> None:
    track.append(float(arm.body.units(arm.goals)[0]))


def test_an_action_is_due_at_its_own_tick_however_late_its_chunk_is(arm: SimulatedArm) -> None:
    goals: dict[int, list[float]] = {}
    for delay in (1, 8):
        arm.reset(random_scene(2))
        planner = Ramp()
        track: list[float] = []
        options = LockstepOptions(SIZES, delay_ticks=delay, replan_ticks=10, seconds=2, watch=partial(note_pan, track))
        run_lockstep(arm, planner, "turn", options)
        goals[delay] = track
    # Once both runs have caught up with the ramp, the same action is due at the same tick: equal to a servo count.
    assert np.abs(np.array(goals[1][30:]) - goals[8][30:]).max() < 0.1
    slope = np.diff(goals[1][30:])
    assert np.abs(slope - 1).max() < 0.1, "one degree a tick, up to the rounding to counts"


def test_an_inference_cannot_start_before_the_last_one_ended() -> None:
    with pytest.raises(ConfigError, match="delay_ticks 12 must be 0 or more and at most replan_ticks 10"):
        LockstepOptions(SIZES, delay_ticks=12, replan_ticks=10)


def test_a_recorded_episode_switches_targets_and_labels_every_instruction(arm: SimulatedArm) -> None:
    episode = record_episode(arm, 5, observations=24)
    assert episode.images["phone"].shape == (24, 48, 64, 3)
    assert episode.chunks.shape == (24, 3, CHUNK, 6)
    assert len(set(episode.target.tolist())) > 1, "one target throughout would let the pose betray it"
    last = episode.chunks[:, :, -1]
    assert np.abs(last[:, 0] - last[:, 1]).max() > 5, "instructions must lead to different places (degrees)"
    present = arm.body.radians(episode.state.astype(np.float64))
    command = present[0] + arm.sag(present[0])
    goal = arm.body.radians(episode.chunks[0, 1, -1].astype(np.float64))
    # The recursion starts at the present pose and closes in on its goal by at most 0.06 rad a tick.
    steps = np.diff(arm.body.radians(episode.chunks[0, 1].astype(np.float64)), axis=0)
    assert np.abs(steps).max() <= 0.06 + 1e-6
    assert np.abs(expert_chunk(command, goal)[0] - command).max() <= 0.06 + 1e-9
