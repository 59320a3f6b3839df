# SPDX-License-Identifier: Apache-2.0
"""The picture of a gate calibration: error of reuse against what the pixels and the gate see, with the chosen
limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vla_edge.calibration.gate.gate_limits import Limits, Pairs, Values
from vla_edge.runtime.inference.scene_gate import NO_SIMILARITY, GateSettings

GATE_PLOT = "gate.png"
_FLOOR = 1e-6


def draw(pairs: Pairs, settings: GateSettings, limits: Limits, file: Path) -> None:
    """Write the plot as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8), layout="constrained")
    (worst, mean), (alike, trade) = figure.subplots(2, 2)
    _scatter(worst, pairs, pairs.still_worst, settings.still_worst, settings.bound, "still: worst block, grey levels")
    _scatter(mean, pairs, pairs.still_mean, settings.still_mean, settings.bound, "still: mean, grey levels")
    if settings.similarity == NO_SIMILARITY:
        alike.set_axis_off()
    else:
        value = limits.auroc[settings.similarity]
        number = "–" if value is None else f"{value:.3f}"
        label = f"1 − similarity {settings.similarity} (AUROC {number})"
        distance = 1 - pairs.similarity[settings.similarity]
        _scatter(alike, pairs, distance, 1 - settings.threshold, settings.bound, label)
    _trade(trade, pairs, settings)
    figure.suptitle(
        f"Error of what was kept, with fresh joints, {len(pairs)} pairs; bound {settings.bound:.1%} of a joint's range"
    )
    figure.savefig(file, dpi=100)


def _scatter(axes: Any, pairs: Pairs, distance: Values, limit: float, bound: float, label: str) -> None:
    own = np.isfinite(pairs.lag_s)
    for part, colour, name in ((own, "tab:blue", "same episode"), (~own, "tab:orange", "another episode, same task")):
        if part.any():
            x, y = (np.maximum(values[part], _FLOOR) for values in (distance, pairs.error))
            axes.scatter(x, y, s=8, alpha=0.5, color=colour, label=name)
    axes.axvline(max(limit, _FLOOR), color="tab:green", label="limit")
    axes.axhline(bound, color="tab:red", linestyle="--", label="bound")
    axes.set(xscale="log", yscale="log", xlabel=label, ylabel="action error, share of range (p95 of a chunk)")
    axes.legend(loc="lower right", fontsize=8)


def _trade(axes: Any, pairs: Pairs, settings: GateSettings) -> None:
    """Share of the pairs that a limit allows against the error it lets through."""
    curves = {"worst block": pairs.still_worst, "mean": pairs.still_mean}
    curves |= {f"similarity {name}": 1 - values for name, values in pairs.similarity.items()}
    for name, distance in curves.items():
        order = np.argsort(distance, kind="stable")
        error = pairs.error[order]
        counts = np.unique(np.linspace(1, len(error), 60).astype(int))
        through = [max(float(np.percentile(error[:count], 95)), _FLOOR) for count in counts]
        axes.plot(counts / len(error), through, label=name, linewidth=1.2)
    axes.axhline(settings.bound, color="tab:red", linestyle="--", label="bound")
    axes.set(
        yscale="log", xlabel="share of pairs allowed, by increasing distance", ylabel="95th percentile of their error"
    )
    axes.legend(loc="lower right", fontsize=8)
