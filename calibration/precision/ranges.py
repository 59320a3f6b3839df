# SPDX-License-Identifier: Apache-2.0
"""Ranges of the activations that enter linear maps, gathered over real runs of all graphs, resumable.

A tap keeps its exact extremes, which are what is quantised (cutting values off, by percentile or by least squared
error, was measured to be worse), and the largest magnitude of every channel.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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

FORMAT = 2


@dataclass
class Tap:
    """One activation tensor: its extremes, and channels float32 [channels], the largest magnitude of each."""

    low: float = 0.0
    high: float = 0.0
    channels: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))

    def add(self, values: NDArray[np.float32]) -> None:
        """values float32 [rows, channels]."""
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        magnitude = np.maximum(values.max(axis=0), -values.min(axis=0))
        self.channels = magnitude if not self.channels.size else np.maximum(self.channels, magnitude)

    def span(self) -> Span:
        """The span to quantise."""
        return Span(self.low, self.high)

    def without(self, channels: tuple[int, ...]) -> Tap:
        """The tap of the other channels."""
        rest = np.delete(self.channels, channels)
        largest = float(rest.max())
        return Tap(max(self.low, -largest), min(self.high, largest), rest)

    def outliers(self, ratio: float) -> tuple[int, ...]:
        """Channels whose largest magnitude exceeds `ratio` times the median channel's."""
        return tuple(int(index) for index in np.flatnonzero(self.channels > ratio * np.median(self.channels)))


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
        arrays |= {f"{number}.span": np.array([tap.low, tap.high]), f"{number}.channels": tap.channels}
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
            taps[graph, value] = Tap(float(low), float(high), arrays[f"{number}.channels"])
        return taps, int(about["seen"])
