# SPDX-License-Identifier: Apache-2.0
"""The comparison as a picture and a table: latency with the 33.3 ms line, parameters, error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vla_edge.errors import ConfigError
from vla_edge.fields import read_object, take

TICK_MS = 1000 / 30
"""One action period at 30 Hz."""


@dataclass(frozen=True, slots=True)
class RobotTrials:
    """How a policy's trials on the robot went. seconds: mean time of those that succeeded, None without one;
    interventions: trials that a person broke off."""

    trials: int
    successes: int
    seconds: float | None
    interventions: int


def read_trials(file: Path) -> RobotTrials:
    """Of the file that `vla-runtime report --trials` writes. ConfigError: it is none, or holds no trial."""
    content = read_object(file, ConfigError, "write it with `vla-runtime report RECORD --trials FILE`", "no such file")
    recorded = content.get("trials")
    if not isinstance(recorded, list) or not recorded or not all(isinstance(trial, dict) for trial in recorded):
        raise ConfigError(f"{file}: no trial in it; write it with `vla-runtime report RECORD --trials FILE`")
    spent = [take(trial, "seconds", 0.0, file) for trial in recorded if take(trial, "succeeded", False, file)]
    stepped_in = sum(take(trial, "stepped_in", False, file) for trial in recorded)
    return RobotTrials(len(recorded), len(spent), sum(spent) / len(spent) if spent else None, stepped_in)


@dataclass(frozen=True, slots=True)
class Contender:
    """One policy of the comparison. latency_ms: p50 and p99 of one chunk on this host, None for saved predictions
    without it; parameters: count, None when unknown; chunk, executed: actions that it makes at once, and carries out of
    them; mae: mean over joints of each horizon, in joint units; per_joint: the same of each joint by its name. trials:
    on the robot, None without. flow_steps: a chunk's, None without."""

    name: str
    kind: str
    latency_p50_ms: float | None
    latency_p99_ms: float | None
    parameters: int | None
    chunk: int
    executed: int
    mae: dict[str, float] = field(default_factory=dict)
    mse: dict[str, float] = field(default_factory=dict)
    per_joint: dict[str, dict[str, float]] = field(default_factory=dict)
    trials: RobotTrials | None = None
    flow_steps: int | None = None


def draw(contenders: Sequence[Contender], file: Path) -> None:
    """Three panels beside each other, one bar per contender; written as PNG."""
    from matplotlib.figure import Figure

    names = [contender.name for contender in contenders]
    places = list(range(len(names)))
    figure = Figure(figsize=(max(10.0, 2.6 * len(names) + 5), 4.6), layout="constrained")
    latency, parameters, error = figure.subplots(1, 3)

    timed = [
        (i, c.latency_p50_ms, c.latency_p99_ms)
        for i, c in enumerate(contenders)
        if c.latency_p50_ms is not None and c.latency_p99_ms is not None
    ]
    middles, tops = [middle for _, middle, _ in timed], [top for _, _, top in timed]
    spread = [top - middle for middle, top in zip(middles, tops)]
    latency.bar([i for i, _, _ in timed], middles, yerr=[[0.0] * len(timed), spread], capsize=4, color="tab:blue")
    latency.axhline(TICK_MS, color="tab:red", linestyle="--", label=f"{TICK_MS:.1f} ms (30 Hz)")
    latency.set_title("latency of one chunk, p50 (bar to p99)")
    latency.set_ylabel("ms")
    if max([TICK_MS, *tops]) / min([TICK_MS, *middles]) > 20:
        latency.set_yscale("log")
    latency.set_ylim(top=max([TICK_MS, *tops]) * 1.3)
    for place in set(places) - {i for i, _, _ in timed}:
        latency.text(place, TICK_MS, "not\nmeasured", ha="center", va="top", fontsize=8)
    latency.legend(loc="upper right")

    sizes = [(c.parameters or 0) / 1e6 for c in contenders]
    parameters.bar(places, sizes, color="tab:green")
    for place, contender in zip(places, contenders):
        text = f"{sizes[place]:.1f}" if contender.parameters is not None else "unknown"
        parameters.text(place, sizes[place], text, ha="center", va="bottom")
    parameters.set_title("parameters")
    parameters.set_ylabel("million")
    parameters.margins(y=0.15)

    horizons = list(contenders[0].mae)
    width = 0.8 / len(horizons)
    for number, horizon in enumerate(horizons):
        offsets = [place + (number - (len(horizons) - 1) / 2) * width for place in places]
        error.bar(offsets, [c.mae[horizon] for c in contenders], width, label=horizon)
    error.set_title("mean absolute error")
    error.set_ylabel("joint units")
    error.margins(y=0.15)
    error.legend()

    for panel in (latency, parameters, error):
        panel.set_xticks(places, names, rotation=20, ha="right")
        panel.set_xlim(-0.6, len(names) - 0.4)
    figure.savefig(file, dpi=120)


def markdown(contenders: Sequence[Contender]) -> str:
    """One column per contender; the last rows are of trials on the robot, open where there were none."""
    compared = f"{min(c.chunk for c in contenders)} ({min(c.executed for c in contenders)})"
    rows: list[tuple[str, list[str]]] = [
        ("kind", [c.kind for c in contenders]),
        ("parameters", [f"{c.parameters / 1e6:.2f} M" if c.parameters is not None else "unknown" for c in contenders]),
        ("flow steps", ["–" if c.flow_steps is None else str(c.flow_steps) for c in contenders]),
        ("actions a chunk (executed)", [f"{c.chunk} ({c.executed})" for c in contenders]),
        ("of them compared (executed)", [compared] * len(contenders)),
        ("latency p50 / p99 (ms)", [_latency(c) for c in contenders]),
        ("within 33.3 ms at p99", [_within(c) for c in contenders]),
    ]
    for horizon in contenders[0].mae:
        rows.append((f"MAE, {horizon}", [f"{c.mae[horizon]:.4f}" for c in contenders]))
        rows.append((f"MSE, {horizon}", [f"{c.mse[horizon]:.5f}" for c in contenders]))
    for horizon, joints in contenders[0].per_joint.items():
        for joint in joints:
            rows.append((f"MAE, {horizon}, {joint}", [f"{c.per_joint[horizon][joint]:.4f}" for c in contenders]))
    on_robot = [c.trials for c in contenders]
    rows += [
        ("robot trials: successes / trials", [f"{t.successes} / {t.trials}" if t else "" for t in on_robot]),
        ("robot trials: mean time to success (s)", [_seconds(t) for t in on_robot]),
        ("robot trials: interventions", [str(t.interventions) if t else "" for t in on_robot]),
    ]
    lines = ["| | " + " | ".join(c.name for c in contenders) + " |", "|---" * (len(contenders) + 1) + "|"]
    return "\n".join(lines + [f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows])


def _latency(contender: Contender) -> str:
    if contender.latency_p50_ms is None:
        return "not measured"
    return f"{contender.latency_p50_ms:.1f} / {contender.latency_p99_ms:.1f}"


def _within(contender: Contender) -> str:
    if contender.latency_p99_ms is None:
        return "not measured"
    return "yes" if contender.latency_p99_ms <= TICK_MS else "no"


def _seconds(trials: RobotTrials | None) -> str:
    if trials is None:
        return ""
    return "–" if trials.seconds is None else f"{trials.seconds:.1f}"
