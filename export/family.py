# SPDX-License-Identifier: Apache-2.0
"""What export asks of a policy family: a folder here with `family.py`, which holds its `Exporter` as `FAMILY_EXPORTER`.

Nothing lists the families: config.json's `type` names the folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vla_edge.bundle import Bundle, CorrectionSpec, NormalizationSpec, PolicySpec, Programme
from vla_edge.engines.engine import Engine
from vla_edge.export.graph import Graph
from vla_edge.export.proof_observations import Case
from vla_edge.policies.checkpoint_folder import resolve_checkpoint
from vla_edge.policies.families import Policy, family_of, load_policy


@dataclass(frozen=True)
class Cut:
    """One graph: its name and what builds it."""

    name: str
    build: Callable[[Graph], None]


class Comparison(Protocol):
    """Both sides, a bundle and its policy in torch, set up once for all cases."""

    def case(self, case: Case) -> None:
        """Add the deviation of every graph on one observation."""


class Deviations(Protocol):
    """Where a comparison tells what it found (`proof.py`)."""

    def add(self, graph: str, found: NDArray[Any], expected: Any) -> None: ...


class Exporter(Protocol):
    """One loaded policy of a family, as export sees it.

    graphs: what is compared, in the order in which it is made: graphs, and what goes into them and comes out.
    masks_cameras: the policy runs without one of its cameras. placeholder_size: height and width that say nothing of
    the data's pictures, None where there is no such.
    """

    policy: Policy
    graphs: tuple[str, ...]
    masks_cameras: bool
    placeholder_size: tuple[int, int] | None

    def check(self, checkpoint: Path, step_sizes: tuple[float, ...]) -> None:
        """CheckpointError, ConfigError: what the runtime could not run, or must not. step_sizes: as in
        `ExportRequest`."""

    def take_empty_cameras(self, checkpoint: Path) -> None:
        """Make cameras of the empty ones that config.json names. ConfigError: it names none."""

    def shorten_chunk(self, checkpoint: Path, size: int) -> None:
        """Compute the first `size` actions of a chunk only. ConfigError: the policy makes fewer, or its actions depend
        on later ones."""

    def cuts(self) -> list[Cut]:
        """The graphs, in the order in which they run."""

    def spec(self) -> PolicySpec: ...

    def programme(self, graphs: Iterable[str]) -> Programme: ...

    def pictures(self) -> tuple[NormalizationSpec, ...]:
        """How each camera's channels are normalised; empty where the policy scales pictures to −1..1."""

    def tables(self, step_sizes: tuple[float, ...]) -> dict[str, NDArray[np.float32]]:
        """Arrays of the runtime besides the statistics."""

    def gate(self) -> dict[str, Any]:
        """What stands in the manifest's `gate` before calibration."""

    def correction(self) -> CorrectionSpec | None:
        """What is known of the graphs that correct a queued chunk; None without them."""

    def comparison(self, bundle: Bundle, engine: Engine, deviations: Deviations) -> Comparison: ...


def exporter_of(checkpoint: Path, vlm: Path | None = None, base: Path | None = None) -> Exporter:
    """The policy that `checkpoint` leads to, ready for export. Errors: CheckpointError, ConfigError."""
    folder = resolve_checkpoint(checkpoint)
    module = import_module(f"vla_edge.export.{family_of(folder)}.family")
    exporter: Exporter = module.FAMILY_EXPORTER(load_policy(folder, vlm, base))
    return exporter
