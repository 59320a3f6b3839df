# SPDX-License-Identifier: Apache-2.0
"""From one chunk to the next: how long an inference takes here, what that allows, and how the new chunk joins the old.

Pure: times are arguments. A host *overlaps* when a chunk lasts for two inferences: the one it was late by, and the one
that makes its successor. Otherwise it plans, then moves.
"""

from __future__ import annotations

import argparse
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from vla_edge.bundle import Manifest, PolicySpec
from vla_edge.command_line import count
from vla_edge.engines.flow_loop import Inpaint
from vla_edge.ensembling import TemporalEnsemble, rows_from
from vla_edge.errors import ConfigError


class HandOver(Enum):
    """How a new chunk takes over where it overlaps the old one: at once; over some actions, by the control core; led
    into it while it is made (`Inpaint`), where the policy makes it in steps; or averaged with all before it
    (ensembling.py), as LeRobot's ACT does with `temporal_ensemble_coeff`."""

    REPLACE = "replace"
    BLEND = "blend"
    INPAINT = "inpaint"
    ENSEMBLE = "ensemble"

    @property
    def blend_actions(self) -> int:
        """What the control core is told: actions over which it leads a new chunk in, 0 for one that takes over at
        once."""
        return BLEND_ACTIONS if self is HandOver.BLEND else 0


HAND_OVER = HandOver.INPAINT
"""The default of robot, trials and benchmarks: stillest, smoothest and no later than the others to react
(benchmarks/results/handover.md)."""
ONE_PASS = HandOver.BLEND
"""The default for a policy of one pass, whose chunk nothing ties, when its checkpoint names no ensemble: it is
calmer than `replace`; an ensemble is the calmest, but a mean of plans that go two ways is neither
(benchmarks/results/handover.md)."""
ENSEMBLE_COEFFICIENT = 0.01
"""Of a policy whose checkpoint names none: the ACT paper's."""
BLEND_ACTIONS = 5


@dataclass(frozen=True, slots=True)
class HandOverOptions:
    """kind, how many rows `inpaint` ties at most (horizon; None: all that overlap, LeRobot ties 10), and the weights'
    coefficient of an ensemble."""

    kind: HandOver = HAND_OVER
    horizon: int | None = None
    coefficient: float = ENSEMBLE_COEFFICIENT


def add_handover_arguments(parser: argparse._ActionsContainer) -> None:
    """Command-line options of the hand-over."""
    parser.add_argument(
        "--handover",
        choices=[kind.value for kind in HandOver],
        help=f"how a new chunk takes over (default: {HAND_OVER.value}; for a policy without flow steps ensemble where "
        f"its checkpoint says so, else {ONE_PASS.value})",
    )
    parser.add_argument(
        "--inpaint-horizon",
        type=count,
        metavar="ROWS",
        help="most rows of a new chunk that inpaint ties to the executing one (default: all that overlap)",
    )


def handover_of(kind: str | None, horizon: int | None, manifest: Manifest) -> HandOverOptions:
    """The options as given, the policy's own kind where None is. ConfigError names the flag that does not fit it."""
    steps, coefficient = bool(manifest.programme.step), manifest.policy.ensemble_coefficient
    own = HAND_OVER if steps else ONE_PASS if coefficient is None else HandOver.ENSEMBLE
    chosen = own if kind is None else HandOver(kind)
    if chosen is HandOver.INPAINT and not steps:
        raise ConfigError(
            "--handover inpaint ties a chunk while it is made in steps; this policy makes it in one pass: choose "
            "replace, blend or ensemble"
        )
    if horizon is not None and chosen is not HandOver.INPAINT:
        raise ConfigError(
            f"--inpaint-horizon {horizon} is of --handover inpaint, this run's is {chosen.value}; leave it out"
            + (", or give --handover inpaint" if steps else "")
        )
    return HandOverOptions(chosen, horizon, ENSEMBLE_COEFFICIENT if coefficient is None else coefficient)


def rows_of(policy: PolicySpec, handover: HandOverOptions) -> int:
    """Actions of a chunk that are sent. An ensemble is of whole chunks: LeRobot's executes one action of each because
    it plans at every tick."""
    return policy.chunk_size if handover.kind is HandOver.ENSEMBLE else policy.n_action_steps


class Ensemble:
    """Chunks of one episode, averaged moment by moment."""

    def __init__(self, coefficient: float, chunk_size: int) -> None:
        self._means = TemporalEnsemble(coefficient, chunk_size)
        self._tick = 0

    def join(
        self, actions: NDArray[np.float32], tick: int, anew: bool, action_ticks: float = 1.0
    ) -> NDArray[np.float32]:
        """`actions` [C, joints], the first due at `tick`, the next ones `action_ticks` apart, averaged with those of
        the chunks before it; anew: forget them (the arm rested, or the scene is another). A chunk that begins no later
        than the one before replaces all."""
        apart = (tick - self._tick) / action_ticks
        if anew or apart <= 0:
            self._means.reset()
        self._tick = tick
        return self._means.mean(actions, apart if apart > 0 else 1).astype(np.float32)


class Rhythm(Enum):
    """OVERLAPPED replans while the chunk runs (moving chunks); PLAN_THEN_MOVE waits for rest (rest chunks)."""

    OVERLAPPED = "overlapped"
    PLAN_THEN_MOVE = "plan-then-move"


class DelayMeter:
    """The last inferences' durations, from reading the observation to the chunk in the ring, and their step times."""

    def __init__(self, window: int = 200) -> None:
        self._delay_s: deque[float] = deque(maxlen=window)
        self._step_s: deque[float] = deque(maxlen=window)

    def add(self, delay_s: float, step_ms: Sequence[float]) -> None:
        """One finished inference; step_ms may be empty (delta)."""
        self._delay_s.append(delay_s)
        if step_ms:
            self._step_s.append(float(np.mean(step_ms)) / 1e3)

    @property
    def count(self) -> int:
        return len(self._delay_s)

    @property
    def p50_s(self) -> float:
        return _quantile(self._delay_s, 0.5)

    @property
    def p99_s(self) -> float:
        return _quantile(self._delay_s, 0.99)

    @property
    def step_s(self) -> float:
        """Median duration of one Euler step."""
        return _quantile(self._step_s, 0.5)

    def steps_in(self, available_s: float, least: int, most: int) -> int:
        """Euler steps (least..most) whose chunk arrives within available_s, when everything but the steps takes what a
        slow inference of `most` has left for it. Without a measured step all are taken.

        This is `anytime`: chosen before the loop, so that the steps are equal.
        """
        if self.step_s <= 0:
            return most
        rest_s = max(0.0, self.p99_s - most * self.step_s)
        return int(np.clip((available_s - rest_s) / self.step_s, least, most))


class HostDelays:
    """What plans take on this host: all of them; those that made a prefix, which control must have patience for
    (fresh); and what they take while the arm moves, which tells the rhythm (moving): beside a refresh without a prefix,
    because a plan for the resting arm alone is worth one of its own there."""

    def __init__(self, beside: bool) -> None:
        self.all, self.fresh = DelayMeter(), DelayMeter()
        self.moving = DelayMeter() if beside else self.all

    def add(self, delay_s: float, step_ms: Sequence[float], fresh: bool, rest_s: float) -> None:
        """One finished inference. rest_s: what of it only a plan for the resting arm takes beside a refresh."""
        self.all.add(delay_s, step_ms)
        if fresh:
            self.fresh.add(delay_s, step_ms)
        if self.moving is not self.all:
            self.moving.add(delay_s - rest_s, step_ms)


def _quantile(values: Sequence[float] | deque[float], share: float) -> float:
    return float(np.quantile(np.asarray(values), share)) if values else 0.0


@dataclass(frozen=True, slots=True)
class Pace:
    """What this host can do: its rhythm, and the share of time in which an action is due (expected, not measured).
    latest_s: after the last one a plan must begin for its chunk to come before the last one's ends."""

    rhythm: Rhythm
    p50_s: float
    p99_s: float
    chunk_s: float
    motion_share: float
    latest_s: float = math.inf

    def sentence(self) -> str:
        """One line for the start-up print."""
        return (
            f"{self.rhythm.value}: an inference takes {self.p50_s * 1e3:.0f} ms (p99 {self.p99_s * 1e3:.0f}), a "
            f"chunk lasts {self.chunk_s * 1e3:.0f} ms; "
            f"expected share of time in motion {self.motion_share:.0%}"
        )


def pace_of(p50_s: float, p99_s: float, actions: int, action_s: float) -> Pace:
    """Rhythm for measured delays: overlapped when a chunk of `actions`, one each action_s, outlasts two slow inferences
    (p99) and an action of hand-over each."""
    chunk_s = actions * action_s
    if 2 * (p99_s + action_s) <= chunk_s:
        return Pace(Rhythm.OVERLAPPED, p50_s, p99_s, chunk_s, 1.0, chunk_s - p99_s - 2 * action_s)
    return Pace(Rhythm.PLAN_THEN_MOVE, p50_s, p99_s, chunk_s, chunk_s / (chunk_s + p50_s + action_s))


@dataclass(frozen=True, slots=True)
class PlannedChunk:
    """A chunk that was sent: latent rows float32 [n, A], row 0 due at start_tick, the next ones `action_ticks` control
    ticks apart (a whole number or not)."""

    latent: NDArray[np.float32]
    start_tick: int
    action_ticks: float = 1.0

    def rest(self, tick: int) -> NDArray[np.float32]:
        """Rows due at `tick` and one action after the other from there; an empty array when all are past."""
        return rows_from(self.latent, max(0.0, (tick - self.start_tick) / self.action_ticks))


def inpaint_into(
    executing: PlannedChunk, tick: int, delay_actions: int, rows: int, horizon: int | None
) -> Inpaint | None:
    """Tie a new chunk of `rows` actions, action 0 due at `tick`, to the executing one; None when nothing overlaps.

    The first delay_actions rows will have been executed when the chunk arrives: they are frozen. The weights of the
    other overlapping rows, up to `horizon` (None: all), decay as in real-time chunking (arXiv 2506.07339, equation 5).
    No gradient through the model: rows are drawn to the executing chunk's path in the flow itself.
    """
    left = executing.rest(tick)[: rows if horizon is None else min(rows, max(horizon, delay_actions))]
    overlap = len(left)
    if overlap == 0:
        return None
    target = np.zeros((rows, left.shape[1]), np.float32)
    target[:overlap] = left
    frozen = min(max(delay_actions, 0), overlap)
    weights = np.zeros(rows, np.float32)
    weights[:frozen] = 1
    c = (overlap - np.arange(frozen, overlap)) / (overlap - frozen + 1)
    weights[frozen:overlap] = c * np.expm1(c) / (np.e - 1)
    return Inpaint(target, weights)
