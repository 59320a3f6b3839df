# SPDX-License-Identifier: Apache-2.0
"""Which frames make up each batch: exact quotas per task, seeded, resumable.

The whole state is how many batches were drawn and how many frames each source
gave, so a resumed run draws the same frames as an uninterrupted one, whatever
a loader had already read ahead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import floor, inf

import numpy as np
from numpy.typing import NDArray

from vla_edge.errors import ConfigError, TrainingError

FINEST = 1_000_000
"""Largest denominator of a weight."""


@dataclass(frozen=True, slots=True)
class Source:
    """One dataset in the mix: `frames` it offers, `weight` its share of every batch (any positive scale)."""

    name: str
    frames: int
    weight: float


@dataclass(frozen=True, slots=True)
class SamplerState:
    """`batches` drawn so far and frames `drawn` from each source."""

    batches: int
    drawn: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Draw:
    """One batch: (source, frame) pairs in a seeded order, and the state after it."""

    picks: tuple[tuple[int, int], ...]
    after: SamplerState


class QuotaSampler:
    """Draws batches of `batch_size` frames; a source's running total stays within two frames of its exact share.

    Within a source every frame is drawn once per pass, in an order that depends
    on (seed, source, pass) only. ConfigError for empty sources and bad weights.
    """

    def __init__(self, sources: Sequence[Source], batch_size: int, seed: int) -> None:
        if not sources:
            raise ConfigError("no dataset to draw from; give at least one")
        for source in sources:
            if source.frames < 1:
                raise ConfigError(f"dataset {source.name!r} has no frames to train on; check its episode list")
            if not 0 < source.weight < inf or not _exact(source.weight):
                raise ConfigError(
                    f"dataset {source.name!r} has weight {source.weight}; weights must be finite and at least "
                    f"{1 / FINEST:g}"
                )
        total = sum(_exact(source.weight) for source in sources)
        self.sources = tuple(sources)
        self.batch_size = batch_size
        self.seed = seed
        self._shares = tuple(_exact(source.weight) / total * batch_size for source in sources)
        self._orders: dict[int, tuple[int, NDArray[np.int64]]] = {}

    def start(self) -> SamplerState:
        return SamplerState(0, (0,) * len(self.sources))

    def draw(self, state: SamplerState) -> Draw:
        """The batch that follows `state`."""
        counts = quota(self._shares, self.batch_size, state)
        picks = [
            (source, self._frame(source, state.drawn[source] + offset))
            for source, count in enumerate(counts)
            for offset in range(count)
        ]
        order = np.random.default_rng((self.seed, 1 << 20, state.batches)).permutation(len(picks))
        return Draw(tuple(picks[i] for i in order), _after(state, counts))

    def advance(self, state: SamplerState) -> SamplerState:
        """The state after one more batch, without drawing it."""
        return _after(state, quota(self._shares, self.batch_size, state))

    def passes(self, state: SamplerState) -> tuple[float, ...]:
        """How many times each source has been gone through."""
        return tuple(drawn / source.frames for drawn, source in zip(state.drawn, self.sources))

    def save(self, state: SamplerState) -> dict[str, object]:
        """`state` with what it is only valid for, as JSON values."""
        return {
            "batches": state.batches,
            "drawn": list(state.drawn),
            "sources": [[s.name, s.frames, s.weight] for s in self.sources],
            "batch_size": self.batch_size,
            "seed": self.seed,
        }

    def restore(self, saved: dict[str, object]) -> SamplerState:
        """The state `save` wrote; TrainingError when the data or the batch size are not what it was written for."""
        now = self.save(self.start())
        for key in ("sources", "batch_size", "seed"):
            if saved.get(key) != now[key]:
                raise TrainingError(
                    f"cannot resume: sampler {key} was {saved.get(key)} and is now {now[key]}; start a new run"
                )
        return SamplerState(int(str(saved["batches"])), tuple(int(n) for n in saved["drawn"]))  # type: ignore[attr-defined]

    def _frame(self, source: int, position: int) -> int:
        frames = self.sources[source].frames
        number = position // frames
        held = self._orders.get(source)
        if held is None or held[0] != number:
            held = (number, np.random.default_rng((self.seed, source, number)).permutation(frames))
            self._orders[source] = held
        return int(held[1][position % frames])


def _exact(weight: float) -> Fraction:
    """0.2 as 1/5: what was written, not its nearest float."""
    return Fraction(weight).limit_denominator(FINEST)


def _after(state: SamplerState, counts: Sequence[int]) -> SamplerState:
    return SamplerState(state.batches + 1, tuple(a + b for a, b in zip(state.drawn, counts)))


def quota(shares: Sequence[Fraction], batch_size: int, state: SamplerState) -> tuple[int, ...]:
    """Frames of each source in the batch after `state`; sums to `batch_size`.

    Each count is its share rounded down or up. Who is rounded up follows from
    what each source is due (its share of all batches including this one less
    what it gave), so that running totals stay within two frames of exact.
    """
    whole = [floor(share) for share in shares]
    due = [share * (state.batches + 1) - drawn - base for share, drawn, base in zip(shares, state.drawn, whole)]
    candidates = sorted((i for i, share in enumerate(shares) if share != whole[i]), key=lambda i: (-due[i], i))
    rounded_up = set(candidates[: batch_size - sum(whole)])
    return tuple(base + (i in rounded_up) for i, base in enumerate(whole))
