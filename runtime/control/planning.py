# SPDX-License-Identifier: Apache-2.0
"""When to infer, and what kind of chunk comes of it: the rules of the inference process, pure.

A moving chunk is due from its observation's tick on; a rest chunk from its acceptance, and only when nothing moved
since. So a slow host, whose moving chunk would arrive with its actions past, waits for rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_edge.contract import ChunkKind, Frame
from vla_edge.runtime.control.handover import PlannedChunk, Rhythm
from vla_edge.runtime.inference.scene_gate import block_means, still_reading

TAKES_CHUNKS = ("planning", "moving", "hold")
"""States in which control takes chunks; not when the hold is latched."""

STILL_MEAN, STILL_WORST = 2.0, 16.0
"""Grey levels up to which a picture counts as still for a rest chunk: above a camera's noise, below an object that
moves."""


@dataclass(frozen=True, slots=True)
class ControlView:
    """What inference needs of the control's status (runtime/core/control/status.h), one reading of it. Times in ns,
    ticks of the control loop; positions float32 [joints] in joint units. action_ns: from one action of a chunk to the
    next. plan_tick: at which action 0 of the plan in force is due."""

    session: int
    state: str
    latched: bool
    tick: int
    tick_ns: int
    period_ns: int
    reading_tick: int
    reading_ns: int
    positions: NDArray[np.float32]
    goal_moved_tick: int
    action_ns: int
    plan_tick: int
    action_sequence: int
    action_index: int
    actions_left: int
    bundle_digest: str

    @property
    def takes_chunks(self) -> bool:
        return self.state in TAKES_CHUNKS and not self.latched and self.reading_tick >= 0

    @property
    def rest_ticks(self) -> int:
        """Ticks of readings since the goal last moved."""
        return self.reading_tick - self.goal_moved_tick

    @property
    def rest_since_ns(self) -> int:
        """When the first reading after the goal's last move was taken, nominally."""
        return self.reading_ns - (self.rest_ticks - 1) * self.period_ns


def view_of(status: Mapping[str, Any]) -> ControlView:
    """The status dictionary of `_core.StateReader` as a ControlView."""
    names = ControlView.__dataclass_fields__.keys() - {"positions"}
    return ControlView(**{name: status[name] for name in names}, positions=np.asarray(status["positions"], np.float32))


@dataclass(frozen=True, slots=True)
class PlanRules:
    """settle_ticks: how long the goal must have been constant before a rest observation (the arm swings out).
    replan_ticks: least distance between the observations of two moving chunks."""

    settle_ticks: int
    replan_ticks: int


def next_kind(view: ControlView, rhythm: Rhythm, rules: PlanRules, last_observed_tick: int | None) -> ChunkKind | None:
    """The chunk to plan now, or None to wait. last_observed_tick: of the last chunk sent, None before the first."""
    if not view.takes_chunks:
        return None
    if view.state != "moving" and view.rest_ticks >= rules.settle_ticks:
        return ChunkKind.REST
    if rhythm is Rhythm.PLAN_THEN_MOVE or view.state != "moving":
        return None
    if last_observed_tick is not None and view.reading_tick - last_observed_tick < rules.replan_ticks:
        return None
    return ChunkKind.MOVING


def frames_are_of_rest(frames: Mapping[str, Frame], view: ControlView) -> bool:
    """Every picture was taken after the goal had become constant."""
    return all(frame.captured_ns >= view.rest_since_ns for frame in frames.values())


def still(before: Mapping[str, Frame], after: Mapping[str, Frame]) -> bool:
    """No camera's picture changed between two sets of frames, by the limits of stillness."""
    readings = [still_reading(block_means(after[name].image), block_means(before[name].image)) for name in before]
    return all(reading.mean <= STILL_MEAN and reading.worst <= STILL_WORST for reading in readings)


class WatchedScene:
    """The pictures an inference was started from, and how far newer ones may be from them (grey levels of its
    blocks) before its chunk is worthless."""

    def __init__(self, frames: Mapping[str, Frame], mean: float, worst: float) -> None:
        self._frames, self._mean, self._worst = frames, mean, worst
        self._blocks = {name: block_means(frame.image) for name, frame in frames.items()}

    def broken_by(self, newer: Mapping[str, Frame]) -> bool:
        """Whether one of these pictures was taken later and is beyond the limits."""
        for name, frame in newer.items():
            if frame.captured_ns > self._frames[name].captured_ns:
                reading = still_reading(block_means(frame.image), self._blocks[name])
                if reading.mean > self._mean or reading.worst > self._worst:
                    return True
        return False


class SceneStill:
    """Tells the plan that is the first to know of a change in a scene that stood still until then: what is left of the
    executing chunk was planned for another scene, so the new one is not tied to it. While the arm moves the scene is
    never still. moved: a change was seen, and no plan rests on newer pictures yet: with a refresh beside the plans that
    is some plans later."""

    def __init__(self) -> None:
        self._frames: Mapping[str, Frame] | None = None
        self._still = self.moved = False

    def see(self, frames: Mapping[str, Frame]) -> None:
        """The next plan's: the scene has moved where the last two plans saw one scene and this one sees another."""
        same = self._frames is not None and still(self._frames, frames)
        self.moved |= self._still and not same
        self._frames, self._still = frames, same

    def known_to(self, newer: bool) -> bool:
        """Whether a plan is the first to know of the change; newer: it rests on pictures that the last one did not."""
        first = self.moved and newer
        self.moved &= not newer
        return first


class SentChunks:
    """The last chunks that were sent, by observation sequence, so that the executing one can be found again."""

    def __init__(self, keep: int = 8) -> None:
        self._latent: dict[int, NDArray[np.float32]] = {}
        self._keep = keep
        self._due_tick: int | None = None
        self._sent_tick = -1

    def add(self, sequence: int, latent: NDArray[np.float32], sent_tick: int = -1, due_tick: int | None = None) -> None:
        """latent: float32 [n, A], the rows as sent at sent_tick. due_tick: of row 0, None where control decides it."""
        self._latent[sequence] = latent
        self._sent_tick, self._due_tick = sent_tick, due_tick
        while len(self._latent) > self._keep:
            del self._latent[next(iter(self._latent))]

    def clear(self) -> None:
        self._latent.clear()
        self._sent_tick, self._due_tick = -1, None

    @property
    def any(self) -> bool:
        """Whether a chunk was sent since `clear`."""
        return bool(self._latent)

    def awaited(self, view: ControlView) -> bool:
        """Control looks at the ring once a tick: whether what was sent last is not in its status yet."""
        return view.tick <= self._sent_tick + 1

    def executing(self, view: ControlView) -> PlannedChunk | None:
        """The chunk that a new one takes over from, placed in ticks: the one that was sent last, where control has not
        told of it yet and its ticks are known, else the one of which something was due at the view's tick; None when
        nothing of ours was."""
        action_ticks = view.action_ns / view.period_ns
        if self._due_tick is not None and self.awaited(view):
            return PlannedChunk(next(reversed(self._latent.values())), self._due_tick, action_ticks)
        latent = self._latent.get(view.action_sequence)
        if latent is None or view.action_index < 0:
            return None
        return PlannedChunk(latent, view.plan_tick, action_ticks)
