# SPDX-License-Identifier: Apache-2.0
"""Closed-loop episodes of "reach the COLOUR cube" in lockstep, and the planners that can run them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vla_edge.bundle import Bundle
from vla_edge.contract import Observation
from vla_edge.engines.engine import Engine
from vla_edge.ensembling import ON_A_ROW
from vla_edge.robot.sim.bodies.arm_body import ArmBody
from vla_edge.robot.sim.bodies.koch_body import KOCH
from vla_edge.robot.sim.mjcf import CUBE_COLOURS
from vla_edge.robot.sim.scene import random_scene
from vla_edge.robot.sim.simulated_arm import SimOptions, SimulatedArm
from vla_edge.runtime.control.handover import Ensemble, HandOver, PlannedChunk, inpaint_into, rows_of
from vla_edge.runtime.control.planning import SceneStill
from vla_edge.runtime.inference.session import (
    InferenceRequest,
    InferenceResult,
    Noise,
    PolicySession,
    SessionOptions,
    noise_of,
    worth_correcting,
)
from vla_edge.trials.lockstep import LockstepOptions, LockstepResult, Planner, run_lockstep
from vla_edge.trials.reach_expert import instruction

REACHED_M = 0.03
"""A cube counts as reached when the tip ends within this distance of the point above it."""


@dataclass(frozen=True, slots=True)
class ReachOutcome:
    """distance_m: tip to the point above each cube at the end, by colour (mean of the last five ticks)."""

    seed: int
    colour: str
    distance_m: dict[str, float]
    result: LockstepResult

    def reached(self, colour: str) -> bool:
        return self.distance_m[colour] <= REACHED_M


def wanted_colour(seed: int) -> str:
    """The cube that is asked for in a scene: all three equally often over many scenes."""
    return CUBE_COLOURS[int(np.random.default_rng([seed, 8]).integers(3))]


def other_colour(seed: int) -> str:
    """Another cube than the wanted one: the wrong instruction."""
    step = 1 + int(np.random.default_rng([seed, 9]).integers(2))
    return CUBE_COLOURS[(CUBE_COLOURS.index(wanted_colour(seed)) + step) % 3]


def reach(arm: SimulatedArm, planner: Planner, seed: int, colour: str, options: LockstepOptions) -> ReachOutcome:
    """One episode in the scene of `seed` under the instruction to reach the cube of this colour."""
    scene = random_scene(seed, arm.body)
    arm.reset(scene)
    planner.reset(seed, options)
    result = run_lockstep(arm, planner, instruction(colour), options)
    end = result.tips[-5:]
    distances = {colour: float(np.linalg.norm(end - scene.target(colour), axis=1).mean()) for colour in CUBE_COLOURS}
    return ReachOutcome(seed, colour, distances, result)


class SessionPlanner:
    """A bundle on an engine, with the hand-over of the lockstep run. Noise depends on the episode's seed and, where it
    is drawn anew, on the inference's number alone, so that episodes can be compared in pairs.

    executing: the chunk that is under way, None at the start of an episode.
    """

    def __init__(self, bundle: Bundle, engine: Engine, options: SessionOptions | None = None) -> None:
        self.session = PolicySession(bundle, engine, options)
        self.sizes = {camera.source: (camera.height, camera.width) for camera in bundle.manifest.cameras}
        self.executing: PlannedChunk | None = None
        self._options, self._still = LockstepOptions(self.sizes), SceneStill()
        self._ensemble = Ensemble(self._options.handover.coefficient, self.session.policy.chunk_size)
        self._seed, self._inferences = 0, 0

    def reset(self, seed: int, options: LockstepOptions) -> None:
        self.session.reset()
        self.executing, self._options, self._still = None, options, SceneStill()
        self._ensemble = Ensemble(options.handover.coefficient, self.session.policy.chunk_size)
        self._seed, self._inferences = seed, 0

    def infer(self, request: InferenceRequest) -> InferenceResult | None:
        """The session's; a benchmark decides more of the request here."""
        return self.session.infer(request)

    def plan(self, observation: Observation, now_ns: int) -> NDArray[np.float32]:
        policy, tick, handover = self.session.policy, observation.joints.tick, self._options.handover
        kind, shape = self.session.options.noise, (policy.chunk_size, policy.max_action_dim)
        noise = noise_of(self._seed, self._inferences * (kind is Noise.FRESH), shape, kind)
        self._inferences += 1
        tie = None
        self._still.see(observation.frames)
        moved = self._still.moved
        if self.executing is not None and handover.kind is HandOver.INPAINT:
            late = math.ceil((self._options.delay_ticks + 1) / self._options.action_ticks - ON_A_ROW)
            tie = inpaint_into(self.executing, tick, late, policy.chunk_size, handover.horizon)
        left = None if self.executing is None else self.executing.rest(tick)
        queued = None if left is None else worth_correcting(left, policy.n_action_steps)
        request = InferenceRequest(observation, now_ns, noise=noise, queued=queued, inpaint=tie, moved=moved)
        answer = self.infer(request)
        assert answer is not None
        anew = self._still.known_to(answer.newer) or self.executing is None
        rows = rows_of(policy, handover)
        actions = answer.actions[:rows]
        if handover.kind is HandOver.ENSEMBLE:
            actions = self._ensemble.join(actions, tick, anew, self._options.action_ticks)
        self.executing = PlannedChunk(answer.latent[:rows], tick, self._options.action_ticks)
        return actions


def new_arm(options: LockstepOptions, body: ArmBody = KOCH) -> SimulatedArm:
    """A simulated arm for episodes with these options."""
    height, width = next(iter(options.sizes.values()))
    return SimulatedArm(random_scene(0, body), SimOptions(height, width))
