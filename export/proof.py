# SPDX-License-Identifier: Apache-2.0
"""The exported graphs against the plain torch policy, graph by graph, on the runtime's own code path.

Each case is one raw observation (`proof_observations.py`). Both sides start from it; what is compared in which order
is the family's (`parity.py` in its folder).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vla_edge.bundle import Bundle
from vla_edge.engines.engine import Engine
from vla_edge.errors import ExportError
from vla_edge.export.family import Exporter
from vla_edge.export.proof_observations import Case

TOLERANCE = 1e-4
"""max |Δ| over max |torch| of a tensor, float32: rounding of another summation order stays ten times below."""


class WorstDeviations:
    """The worst deviation of what each graph makes, so far."""

    def __init__(self) -> None:
        self.worst: dict[str, float] = {}

    def add(self, graph: str, found: NDArray[Any], expected: Tensor) -> None:
        """max |found − expected| / max |expected|; NaN counts as infinite."""
        reference = expected.detach().float().numpy()
        if found.shape != reference.shape:
            raise ExportError(
                f"parity: {graph} has shape {found.shape}, torch makes {reference.shape}; this is a fault of the "
                "exporter"
            )
        scale = float(np.abs(reference).max()) or 1.0
        deviation = float(np.abs(found - reference).max()) / scale
        self.worst[graph] = max(self.worst.get(graph, 0.0), deviation if np.isfinite(deviation) else np.inf)


def compare(
    exporter: Exporter, bundle: Bundle, engine: Engine, cases: Iterable[Case], progress: Callable[[str], None]
) -> dict[str, Any]:
    """Run all cases; the report for the manifest. ExportError names the first graph over the tolerance."""
    deviations = WorstDeviations()
    comparison = exporter.comparison(bundle, engine, deviations)
    names = []
    for case in cases:
        progress(f"compare with torch: {case.name}")
        comparison.case(case)
        names.append(case.name)
    for graph in exporter.graphs:
        if deviations.worst.get(graph, 0.0) > TOLERANCE:
            raise ExportError(
                f"parity: {graph} differs from torch by {deviations.worst[graph]:.2e} of its maximum, at most "
                f"{TOLERANCE:g} is allowed; nothing was written"
            )
    return {
        "tolerance": TOLERANCE,
        "measure": "max |difference| / max |torch|, worst case",
        "graphs": {graph: deviations.worst[graph] for graph in exporter.graphs if graph in deviations.worst},
        "cases": names,
        "engine": engine.detail,
    }
