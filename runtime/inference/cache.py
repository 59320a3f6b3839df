# SPDX-License-Identifier: Apache-2.0
"""The prefix cache: which pieces of the policy must run for this inference, and why (docs/runtime.md).

The state row is not cached: it is computed in every inference. Time is an argument, nothing here runs a graph.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_edge.runtime.inference.scene_gate import (
    GateSettings,
    SceneGate,
    SceneVerdict,
    StillReading,
    block_means,
    still_reading,
)


class CacheMode(Enum):
    """When a prefix is reused. OFF: never; STILL: where the pictures have not changed; GATED: where the scene gate also
    says that the scene is stable; DELTA: as GATED, and the queued chunk is corrected in one step where it can be."""

    OFF = "off"
    STILL = "still"
    GATED = "gated"
    DELTA = "delta"

    @classmethod
    def _missing_(cls, value: object) -> CacheMode | None:
        """The words of records that were written before."""
        return {"always": cls.OFF, "guard": cls.STILL, "cls": cls.GATED}.get(str(value))


def add_cache_argument(group: argparse._ArgumentGroup) -> None:
    """`--cache`, the same in every command that plans."""
    group.add_argument(
        "--cache",
        choices=[mode.value for mode in CacheMode],
        help="when the prefix is used again: never, while the pictures stand still, where the scene gate agrees, or "
        "there with the queued chunk corrected (default: still where vla-calibrate gate has set the bundle's limits, "
        "else off)",
    )


class Reason(Enum):
    """Why the prefix ran, or that it was reused. The first that holds is named. BESIDE: it was used once more though
    another reason held, while a newer one is made beside the plans."""

    ALWAYS = "always"
    NO_HISTORY = "no_history"
    RESET = "reset"
    BUNDLE = "bundle"
    INSTRUCTION = "instruction"
    CAMERAS = "cameras"
    PREPROCESSING = "preprocessing"
    MAX_AGE = "max_age"
    PICTURE_CHANGED = "picture_changed"
    SCENE_CHANGED = "scene_changed"
    MAX_REUSE = "max_reuse"
    REUSED = "reused"
    BESIDE = "beside"
    AUDIT = "audit"


Pictures = Sequence[NDArray[np.uint8] | None]
"""By camera slot, None where there is none."""
AGED = 0.5
"""Share of max_age_s from which a refresh beside the plans looks at a camera again that has not changed."""
BESIDE_OF = (Reason.PICTURE_CHANGED, Reason.SCENE_CHANGED, Reason.MAX_REUSE)
"""Reasons for a refresh that leave a prefix of the same key, younger than max_age_s."""


@dataclass(frozen=True, slots=True)
class CacheKey:
    """What must be equal for a prefix to be comparable at all. `preprocessing` is whatever shapes the inputs
    besides."""

    bundle: str
    instruction: str
    cameras: tuple[bool, ...]
    preprocessing: str


@dataclass(frozen=True, slots=True)
class Decision:
    """The pieces of one inference. look: camera slots whose `vision` runs; prefix: whether what all pictures make
    together runs, `prefix` where the policy has one; delta: the queued chunk is corrected instead of a new flow; still:
    readings by slot; age_s: of the oldest picture behind the cached prefix before."""

    reason: Reason
    look: tuple[int, ...]
    prefix: bool
    delta: bool = False
    still: Mapping[int, StillReading] = field(default_factory=dict)
    age_s: float | None = None

    @property
    def hit(self) -> bool:
        """An inference that looks at nothing because the cached prefix is as good as a new one."""
        return not self.prefix and self.reason is not Reason.BESIDE

    @property
    def kept(self) -> tuple[int, ...]:
        """Camera slots whose tokens are used again because their picture is still."""
        return tuple(slot for slot in self.still if slot not in self.look)


@dataclass(slots=True)
class CacheCounts:
    """Totals of a session. A refresh without history is neither hit nor miss, nor is a plan on the last prefix while a
    newer one is made (beside); refreshes: of those, what plans went over to. delta runs are hits counted again apart;
    vision_hits: tokens kept by camera slot, whether or not the prefix ran."""

    inferences: int = 0
    hits: int = 0
    misses: int = 0
    no_history: int = 0
    delta_runs: int = 0
    beside: int = 0
    refreshes: int = 0
    audits: int = 0
    vision_runs: Counter[int] = field(default_factory=Counter)
    vision_hits: Counter[int] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)

    def facts(self) -> dict[str, Any]:
        """Every count by name, ready for JSON."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {
            name: {str(key): count for key, count in value.items()} if isinstance(value, Counter) else value
            for name, value in values.items()
        }


class PrefixCache:
    """Decides, and remembers what the cached tokens and prefix were computed from. One for each set of buffers.

    `decide` then the graphs then `computed` or `reused`; an inference that fails in between leaves no history.
    settings may be None for ALWAYS only (then no verdicts are given).
    """

    def __init__(self, mode: CacheMode, settings: GateSettings | None) -> None:
        assert settings is not None or mode is CacheMode.OFF
        self.mode = mode
        self.settings = settings
        self.gate = SceneGate()
        self.counts = CacheCounts()
        self._key: CacheKey | None = None
        self._blocks: dict[int, NDArray[np.float32]] = {}
        self._seen_ns: dict[int, int] = {}
        self._reuses = 0
        self._was_reset = False

    def reset(self) -> None:
        """Forget everything, as at the start of an episode."""
        self._was_reset = self._key is not None or self._was_reset
        self._forget()

    def decide(self, key: CacheKey, pictures: Pictures, now_ns: int, queued: bool) -> Decision:
        """What to run for these pictures. queued: a chunk waits that delta could correct."""
        present = _present(pictures)
        if self.mode is CacheMode.OFF:
            return self._refresh(Reason.ALWAYS, key, present)
        reason = self._key_reason(key)
        if reason is not None:
            self._forget()
            return self._refresh(reason, key, present)
        assert self.settings is not None
        age_s = (now_ns - min(self._seen_ns.values())) / 1e9
        still = {slot: still_reading(block_means(pictures[slot]), self._blocks[slot]) for slot in present}  # type: ignore[arg-type]
        changed = tuple(slot for slot in present if not still[slot].within(self.settings))
        look, reason = present, Reason.REUSED
        if age_s > self.settings.max_age_s:
            reason = Reason.MAX_AGE
        elif changed:
            reason, look = Reason.PICTURE_CHANGED, changed
        elif self.mode is not CacheMode.STILL and self.gate.verdict is SceneVerdict.CHANGED:
            reason = Reason.SCENE_CHANGED
        elif self.mode is not CacheMode.STILL and self.gate.verdict is SceneVerdict.NO_HISTORY:
            reason = Reason.NO_HISTORY
        elif self._reuses >= self.settings.max_reuse:
            reason = Reason.MAX_REUSE
        if reason is Reason.REUSED:
            return Decision(reason, (), False, queued and self.mode is CacheMode.DELTA, still, age_s)
        self._key = None
        return Decision(reason, look, True, False, still, age_s)

    def aged(self, now_ns: int) -> tuple[int, ...]:
        """Camera slots whose tokens are older than half of max_age_s: beside the plans they are made anew in time."""
        assert self.settings is not None
        limit_ns = AGED * self.settings.max_age_s * 1e9
        return tuple(slot for slot, seen_ns in sorted(self._seen_ns.items()) if now_ns - seen_ns > limit_ns)

    def beside(self, decision: Decision, key: CacheKey) -> Decision | None:
        """In place of a refresh that was just decided: use the prefix once more while a newer one is made. None where
        there is none that is young enough."""
        if decision.reason not in BESIDE_OF:
            return None
        self._key = key
        return replace(decision, reason=Reason.BESIDE, look=(), prefix=False)

    def audit(self, key: CacheKey, pictures: Pictures) -> Decision:
        """Recompute everything for a chunk that was a hit; neither hit nor miss."""
        return self._refresh(Reason.AUDIT, key, _present(pictures))

    def computed(
        self,
        decision: Decision,
        key: CacheKey,
        pictures: Pictures,
        features: Mapping[str, NDArray[np.float32]],
        seen_ns: int,
        beside: bool = False,
    ) -> SceneVerdict | None:
        """The decided graphs ran on `pictures` taken at seen_ns: remember them, judge the new prefix, count. beside: it
        was made beside the plans and is used from now on."""
        for slot in decision.look:
            self._seen_ns[slot] = seen_ns
            if self.mode is not CacheMode.OFF:
                self._blocks[slot] = block_means(pictures[slot])  # type: ignore[arg-type]
        self._key = key
        self._reuses = 0
        self._was_reset = False
        if beside:
            self.counts.refreshes += 1
            self.counts.vision_runs.update(decision.look)
        else:
            self._count(decision, key)
        return self.gate.judge(features, self.settings) if self.settings is not None and features else None

    def reused(self, decision: Decision, key: CacheKey) -> None:
        """The cached prefix was used once more."""
        self._reuses += 1
        self._count(decision, key)

    def tighten(self) -> GateSettings:
        """Halve the limits (an audit found too large an error) and forget the prefix. Returns the new limits."""
        assert self.settings is not None
        self.settings = self.settings.tightened()
        self._forget()
        return self.settings

    def _key_reason(self, key: CacheKey) -> Reason | None:
        if self._key is None:
            return Reason.RESET if self._was_reset else Reason.NO_HISTORY
        for item in fields(CacheKey):
            if getattr(self._key, item.name) != getattr(key, item.name):
                return Reason(item.name)
        return None

    def _refresh(self, reason: Reason, key: CacheKey, present: tuple[int, ...]) -> Decision:
        if self._key is not None and self._key != key:
            self._forget()
        self._key = None
        return Decision(reason, present, True)

    def _forget(self) -> None:
        self._key = None
        self._blocks.clear()
        self._seen_ns.clear()
        self._reuses = 0
        self.gate.reset()

    def _count(self, decision: Decision, key: CacheKey) -> None:
        counts = self.counts
        counts.reasons[decision.reason.value] += 1
        for slot, present in enumerate(key.cameras):
            if present:
                (counts.vision_runs if slot in decision.look else counts.vision_hits)[slot] += 1
        if decision.reason is Reason.AUDIT:
            counts.audits += 1
            return
        counts.inferences += 1
        counts.hits += decision.hit
        counts.beside += decision.reason is Reason.BESIDE
        counts.no_history += decision.reason is Reason.NO_HISTORY
        counts.misses += decision.prefix and decision.reason is not Reason.NO_HISTORY
        counts.delta_runs += decision.delta


def _present(pictures: Pictures) -> tuple[int, ...]:
    return tuple(slot for slot, picture in enumerate(pictures) if picture is not None)
