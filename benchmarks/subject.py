# SPDX-License-Identifier: Apache-2.0
"""A subject of the benchmark: what it is made from, its cases, and what one timed run tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

FRESH, CACHED, ONE_CAMERA, DELTA = "fresh", "cached", "one_camera", "delta"
"""Cases: everything computed; prefix reused; one camera's picture changed, the others not; queued chunk corrected."""

OBSERVATIONS = 4
"""Synthetic observations that a case draws from in turn; the action error is measured on all of them."""


@dataclass(frozen=True, slots=True)
class SubjectSpec:
    """kind: "bundle", "torch" or "lerobot". path: bundle or checkpoint. backend: of a bundle. compiled: torch.compile.
    inputs: the bundle whose cameras and sizes the observations have, the same for all subjects. steps: Euler steps of a
    bundle, None the policy's own. fewer: other counts of steps, for a case of its own each, as in "cached, 1 steps"."""

    name: str
    kind: str
    path: Path
    backend: str
    threads: int
    inputs: Path
    compiled: bool = False
    steps: int | None = None
    fewer: tuple[int, ...] = ()


@dataclass(frozen=True)
class Run:
    """One timed run. wall_ms: of the whole inference, observation to actions in joint units; cpu_ms: user and system
    time of the process meanwhile; graphs_ms: of each graph and of what is done between them, as the subject tells
    them."""

    wall_ms: float
    cpu_ms: float
    graphs_ms: Mapping[str, float]


class Subject(Protocol):
    """What a measured process holds."""

    facts: dict[str, Any]
    cases: tuple[str, ...]

    def run(self, case: str, number: int) -> dict[str, float]:
        """One inference; returns `Run.graphs_ms`."""

    def actions(self, number: int) -> np.ndarray:
        """Normalised actions [C, joints] for observation `number` and its fixed noise."""
