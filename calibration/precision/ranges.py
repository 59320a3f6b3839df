"""Ranges of the activations that enter linear maps, gathered over real runs of all graphs, resumable.

A tap keeps its exact extremes, the largest magnitude of every channel and a
histogram with logarithmic bins, which needs no range in advance and of which
two can be added. The span to quantise is taken from it by one of three rules.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_edge.bundle import Bundle
from vla_edge.calibration.precision.int8 import Span
from vla_edge.calibration.precision.observing import ObservingEngine
from vla_edge.calibration.precision.synthetic import Measured
from vla_edge.engines.engine import Engine
from vla_edge.errors import ConfigError
from vla_edge.files import written_beside
from vla_edge.runtime.inference.session import InferenceRequest, PolicySession

OCTAVES = (-24, 24)
PER_OCTAVE = 16
BINS = (OCTAVES[1] - OCTAVES[0]) * PER_OCTAVE
SAMPLED = 1 << 16
"""Numbers of a tensor that enter the histogram at a run, evenly spread; extremes are of all of them."""

PERCENTILE = 99.99
FORMAT = 1


class Method(Enum):
    """MINMAX: the extremes. PERCENTILE: 99.99 % of the values. MSE: the span with the least squared error."""

    MINMAX = "minmax"
    PERCENTILE = "percentile"
    MSE = "mse"


@dataclass
class Tap:
    """One activation tensor. channels: float32 [channels], largest magnitude; counts: int64 [2, BINS], negative and
    other values by magnitude, None where only the extremes are known."""

    low: float = 0.0
    high: float = 0.0
    channels: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    counts: NDArray[np.int64] | None = field(default_factory=lambda: np.zeros((2, BINS), np.int64))

    def add(self, values: NDArray[np.float32]) -> None:
        """values float32 [rows, channels]."""
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        magnitude = np.maximum(values.max(axis=0), -values.min(axis=0))
        self.channels = magnitude if not self.channels.size else np.maximum(self.channels, magnitude)
        assert self.counts is not None
        some = values.reshape(-1)[:: max(1, values.size // SAMPLED)]
        for sign, part in enumerate((some[some < 0], some[some >= 0])):
            self.counts[sign] += np.bincount(_bin_of(np.abs(part)), minlength=BINS)

    def span(self, method: Method) -> Span:
        """The span to quantise."""
        if method is Method.MINMAX or self.counts is None:
            return Span(self.low, self.high)
        if method is Method.PERCENTILE:
            allowed = self.counts.sum() * (100 - PERCENTILE) / 200
            low, high = (_cut(self.counts[sign], allowed) for sign in (0, 1))
            return Span(max(self.low, -low), min(self.high, high))
        return self._least_error(self.counts)

    def without(self, channels: tuple[int, ...]) -> Tap:
        """The tap of the other channels; of their values only the extremes are known."""
        rest = np.delete(self.channels, channels)
        largest = float(rest.max())
        return Tap(max(self.low, -largest), min(self.high, largest), rest, None)

    def outliers(self, ratio: float) -> tuple[int, ...]:
        """Channels whose largest magnitude exceeds `ratio` times the median channel's."""
        return tuple(int(index) for index in np.flatnonzero(self.channels > ratio * np.median(self.channels)))

    def _least_error(self, counts: NDArray[np.int64]) -> Span:
        best, least = Span(self.low, self.high), np.inf
        centres = _centres()
        for share in np.linspace(0.2, 1.0, 41):
            low, high = self.low * share, self.high * share
            step = (high - low) / 255
            clipped = sum(
                float((side * np.maximum(centres - limit, 0) ** 2).sum()) for side, limit in zip(counts, (-low, high))
            )
            error = clipped + float(counts.sum()) * step**2 / 12
            if error < least:
                best, least = Span(low, high), error
        return best


@dataclass(frozen=True)
class Ranges:
    """Taps by (graph, value). digest: of the observations; bundle: digest of the float32 bundle; seen: how many."""

    taps: Mapping[tuple[str, str], Tap]
    bundle: str
    digest: str
    seen: int


def gather(
    bundle: Bundle, engine: Engine, data: Measured, file: Path | None, progress: Callable[[int, int], None]
) -> Ranges:
    """Run every observation and keep what its linear maps saw; `progress` is told (done, of).

    With `file` the state is saved after each observation and an interrupted run goes on there. ConfigError: the file
    belongs to another bundle or other data.
    """
    taps, done = ({}, 0) if file is None or not file.exists() else _read(file, bundle.digest, data.digest)

    def listen(graph: str, value: str, values: NDArray[np.float32]) -> None:
        taps.setdefault((graph, value), Tap()).add(values)

    if done < len(data.observations):
        session = PolicySession(bundle, ObservingEngine(engine, listen))
        for index in range(done, len(data.observations)):
            progress(index, len(data.observations))
            session.infer(InferenceRequest(data.observations[index], 0, noise=data.noise[index]))
            if file is not None:
                _write(file, Ranges(taps, bundle.digest, data.digest, index + 1))
    progress(len(data.observations), len(data.observations))
    return Ranges(taps, bundle.digest, data.digest, len(data.observations))


def _write(file: Path, ranges: Ranges) -> None:
    keys = list(ranges.taps)
    about = {"format": FORMAT, "bundle": ranges.bundle, "digest": ranges.digest, "seen": ranges.seen, "taps": keys}
    arrays: dict[str, Any] = {"about": np.frombuffer(json.dumps(about).encode(), np.uint8)}
    for number, key in enumerate(keys):
        tap = ranges.taps[key]
        assert tap.counts is not None
        arrays |= {
            f"{number}.span": np.array([tap.low, tap.high]),
            f"{number}.channels": tap.channels,
            f"{number}.counts": tap.counts,
        }
    with written_beside(file) as partial, partial.open("wb") as out:
        np.savez_compressed(out, allow_pickle=False, **arrays)


def _read(file: Path, bundle: str, digest: str) -> tuple[dict[tuple[str, str], Tap], int]:
    with np.load(file, allow_pickle=False) as arrays:
        about = json.loads(arrays["about"].tobytes())
        if (about["format"], about["bundle"], about["digest"]) != (FORMAT, bundle, digest):
            raise ConfigError(
                f"{file}: ranges of another bundle or other data; remove it, or give the data it was begun with"
            )
        taps = {}
        for number, (graph, value) in enumerate(about["taps"]):
            low, high = arrays[f"{number}.span"]
            taps[graph, value] = Tap(float(low), float(high), arrays[f"{number}.channels"], arrays[f"{number}.counts"])
        return taps, int(about["seen"])


def _bin_of(magnitude: NDArray[np.float32]) -> NDArray[np.int64]:
    tiny = np.float32(2.0 ** OCTAVES[0])
    number = (np.log2(np.maximum(magnitude, tiny)) - OCTAVES[0]) * PER_OCTAVE
    return np.clip(number, 0, BINS - 1).astype(np.int64)


def _centres() -> NDArray[np.float64]:
    return 2.0 ** (OCTAVES[0] + (np.arange(BINS) + 0.5) / PER_OCTAVE)


def _cut(counts: NDArray[np.int64], allowed: float) -> float:
    """Upper edge of the largest bin that is not cut away."""
    behind = np.cumsum(counts[::-1])[::-1]
    kept = np.flatnonzero(behind > allowed)
    return float(2.0 ** (OCTAVES[0] + (kept[-1] + 1) / PER_OCTAVE)) if kept.size else 0.0
