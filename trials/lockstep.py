# SPDX-License-Identifier: Apache-2.0
"""Observation → chunk → schedule → guard → simulated arm on a simulated clock.

The same policy session, chunk kinds, schedule and guard as on the robot (`_core.Pilot` is what the control loop calls),
but time passes only here: an inference takes exactly `delay_ticks`, however long it really takes, and runs are
repeatable bit for bit. For evaluation over hundreds of episodes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vla_edge.camera_names import PREFIX, short_name
from vla_edge.contract import Chunk, ChunkKind, Command, Frame, JointReading, Observation
from vla_edge.core import load_core
from vla_edge.errors import ConfigError
from vla_edge.robot.arm_description import load_arm
from vla_edge.robot.joint_calibration import JointCalibrations, JointUnits
from vla_edge.robot.sim.bodies.arm_body import counts_from_radians, radians_from_counts
from vla_edge.robot.sim.simulated_arm import SimulatedArm
from vla_edge.runtime.control.control_process import limits_of
from vla_edge.runtime.control.control_settings import ControlRate, ControlSettings
from vla_edge.runtime.control.handover import HandOverOptions

_SESSION = 1
_DIGEST = "0" * 64


class Planner(Protocol):
    """What turns an observation into a chunk: a policy session, a torch policy, a script."""

    def reset(self, seed: int, options: LockstepOptions) -> None:
        """Start of an episode under these options; `seed` is that of its noise."""

    def plan(self, observation: Observation, now_ns: int) -> NDArray[np.float32]:
        """Actions float32 [n, joints] in joint units; action 0 is due with the observation."""


@dataclass(frozen=True, slots=True)
class LockstepOptions:
    """hz: control ticks a second. fps: actions of a chunk a second, None: one each tick. delay_ticks: from an
    observation to its chunk, in control ticks. replan_ticks: from one inference's start to the next one's, at least
    delay_ticks. plan_then_move: a slow host, which plans only while the arm rests (`rest` chunks). sizes: camera ->
    (height, width) of its pictures."""

    sizes: Mapping[str, tuple[int, int]]
    hz: float = 30.0
    fps: float | None = None
    seconds: float = 6.0
    delay_ticks: int = 2
    replan_ticks: int = 10
    plan_then_move: bool = False
    handover: HandOverOptions = HandOverOptions()
    watch: Callable[[SimulatedArm, int], None] | None = None
    """Called after every tick with the arm and the tick's number (recording)."""
    watches: int = 1
    """So often within each tick, evenly, with a number that counts on."""

    def __post_init__(self) -> None:
        if not 0 <= self.delay_ticks <= self.replan_ticks:
            raise ConfigError(
                f"delay_ticks {self.delay_ticks} must be 0 or more and at most replan_ticks {self.replan_ticks}"
            )

    @property
    def rate(self) -> ControlRate:
        return ControlRate(self.hz, self.fps)

    @property
    def action_ticks(self) -> float:
        """Control ticks from one action of a chunk to the next."""
        return self.rate.action_ns / self.rate.period_ns


def options_at(
    rate: ControlRate, sizes: Mapping[str, tuple[int, int]], delay: int, replan: int, **more: Any
) -> LockstepOptions:
    """Options whose inference takes `delay` actions and follows the one before by `replan`, whatever the rate."""
    ticks = rate.action_ns / rate.period_ns
    return LockstepOptions(
        sizes,
        rate.hz,
        rate.fps,
        delay_ticks=round(delay * ticks),
        replan_ticks=round(max(delay, replan) * ticks),
        **more,
    )


@dataclass
class LockstepResult:
    """tips: float64 [ticks, 3] metres. states: ticks spent in each state of control. chunks: verdicts of the schedule
    by name. clamped: ticks in which the guard changed the goal. latched: ticks in a hold that only the operator ends.
    inferences: chunks asked for."""

    tips: NDArray[np.float64]
    states: Counter[str] = field(default_factory=Counter)
    chunks: Counter[str] = field(default_factory=Counter)
    clamped: int = 0
    latched: int = 0
    inferences: int = 0


def run_lockstep(arm: SimulatedArm, planner: Planner, task: str, options: LockstepOptions) -> LockstepResult:
    """Arm the simulated arm in its present scene and let the planner move it for `seconds`."""
    period_ns = options.rate.period_ns
    calibration = JointCalibrations(arm.body.calibration(), "the simulated arm")
    limits = limits_of(load_arm(arm.body.name), calibration, JointUnits.DEGREES)
    settings = ControlSettings(
        limits, period_ns, _SESSION, _DIGEST, options.handover.kind.blend_actions, options.rate.action_ns
    )
    pilot = load_core().Pilot(settings)
    ticks = round(options.seconds * options.hz)
    result = LockstepResult(np.empty((ticks, 3)))
    waiting: list[tuple[int, Chunk]] = []
    next_look, rested = 0, 0
    for tick in range(ticks):
        now_ns = tick * period_ns
        due = [chunk for at, chunk in waiting if at <= tick]
        waiting = [(at, chunk) for at, chunk in waiting if at > tick]
        output = pilot.tick(
            tick,
            now_ns,
            [int(count) for count in counts_from_radians(arm.positions)],
            due,
            command=int(Command.ARM if tick == 0 else Command.NONE),
            p99_ns=options.delay_ticks * period_ns,
            plan_then_move=options.plan_then_move,
        )
        result.states[output["state"]] += 1
        result.chunks.update(output["chunks"])
        result.clamped += output["verdict"].startswith("clamped")
        result.latched += output["latched"]
        # A slow host looks when no goal has moved for two actions: the chunk is then one of rest.
        goals = radians_from_counts(np.array(output["goals"], np.int32)) if output["write"] else arm.goals
        rested = rested + 1 if np.array_equal(goals, arm.goals) else 0
        ready = rested >= 2 * options.action_ticks and not waiting if options.plan_then_move else tick >= next_look
        if ready:
            observation = observe(arm, tick, now_ns, task, options.sizes)
            kind = ChunkKind.REST if options.plan_then_move else ChunkKind.MOVING
            actions = np.ascontiguousarray(planner.plan(observation, now_ns), np.float32)
            waiting.append(
                (tick + max(1, options.delay_ticks), Chunk(kind, _SESSION, _DIGEST, tick, tick, now_ns, actions))
            )
            result.inferences += 1
            next_look = tick + max(1, options.replan_ticks)
        arm.set_goals(goals)
        for part in range(options.watches):
            arm.step(period_ns / 1e9 / options.watches)
            if options.watch is not None:
                options.watch(arm, tick * options.watches + part)
        result.tips[tick] = arm.tip
    return result


def observe(arm: SimulatedArm, tick: int, now_ns: int, task: str, sizes: Mapping[str, tuple[int, int]]) -> Observation:
    """Pictures and joints of this moment, as cameras and control would deliver them."""
    frames = {}
    for camera, size in sizes.items():
        name = PREFIX + short_name(camera)
        frames[name] = Frame(name, arm.render(short_name(camera), size), now_ns, tick)
    # Joints cross as whole servo counts, as on the bus.
    positions = arm.body.units(radians_from_counts(counts_from_radians(arm.positions)))
    return Observation(tick, frames, JointReading(tick, now_ns, positions.astype(np.float32)), task)
