# SPDX-License-Identifier: Apache-2.0
"""The page of `vla-runtime report`: facts of a run in, one HTML document without anything from outside."""

from __future__ import annotations

from base64 import b64encode
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_edge.runtime.control.inference_log import PARTS
from vla_edge.runtime.records.blame import Missed, count_by_cause
from vla_edge.runtime.records.plots import bar_plot, line_plot, state_strip

STATE_COLOURS = {
    "moving": "#2c9a57",
    "planning": "#2f6fde",
    "hold": "#d98a1c",
    "parking": "#16a394",
    "fault": "#d2453b",
    "disarmed": "#b4bdc9",
}
_TEMPLATE = Template(Path(__file__).with_name("report.html").read_text(encoding="utf-8"))


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What `report.gather` found. inferences: lines of inference.jsonl within the record. times_us: quantiles.
    faults: of `flight_record.faults_of`."""

    record: str
    header: Mapping[str, Any]
    ticks: Sequence[Mapping[str, Any]]
    inferences: Sequence[Mapping[str, Any]]
    missed: Sequence[Missed]
    times_us: Mapping[str, Mapping[str, float]]
    gate: Mapping[str, Any] | None
    faults: Sequence[Mapping[str, Any]] = ()
    run: Mapping[str, Any] = field(default_factory=dict)
    """task, bundle, arm, machine, limits; what is not known is left out"""
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    """JPEG of each camera, the newest ones of the run"""


def page(facts: RunFacts) -> str:
    """The whole document."""
    ticks, header = facts.ticks, facts.header
    began = datetime.fromtimestamp((ticks[0]["now_ns"] + header["wall_minus_monotonic_ns"]) / 1e9, timezone.utc)
    skipped, idle = count_by_cause(facts.missed, True), count_by_cause(facts.missed, False)
    moving = sum(tick["due"] for tick in ticks) / len(ticks)
    shown = {
        "ticks": len(ticks),
        "rate": f"{1e9 / header['period_ns']:.1f} Hz",
        "actions": f"{1e9 / header['action_ns']:.1f} a second",
        "skipped": skipped.total(),
        "without action": idle.total(),
        "with an action": f"{moving:.0%}",
        "inferences": sum("reason" in line for line in facts.inferences),
        "written to the arm": "nothing (shadow)" if header["shadow"] else "yes",
    }
    figures = "".join(f"<div><span>{name}</span><b>{value}</b></div>" for name, value in shown.items())
    wrong = "".join(f"<p class='wrong'>tick {fault['tick']}: {escape(fault['fault'])}</p>" for fault in facts.faults)
    sections = [
        f'<div class="facts">{figures}</div>{wrong}{_run(facts.run, facts.pictures)}',
        "<h2>Timing</h2>" + _timing(facts),
        "<h2>Missed ticks</h2>" + _blame(facts.missed, skipped, idle),
        "<h2>Inference and prefix cache</h2>" + _cache(facts),
        "<h2>Joints</h2>" + _joints(facts),
    ]
    body = "".join(f"<section>{section}</section>" for section in sections)
    return _TEMPLATE.substitute(began=f"{began:%Y-%m-%d %H:%M:%S}", record=escape(facts.record), body=body)


def _run(run: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """What ran, on which arm and machine, within which limits, and what the cameras saw last."""
    arm = f"{run['port']}, calibration {run['joints']}, {run['joint_units']}" if "port" in run else None
    bundle = f"{run.get('bundle_path', '')} {run['bundle'][:12]}" if "bundle" in run else None
    shown = {"task": run.get("task"), "bundle": bundle, "cache": run.get("cache"), "hand-over": run.get("handover")}
    shown |= {"arm": arm, "machine": run.get("machine")}
    rows = "".join(f"<tr><td>{name}</td><td>{escape(value)}</td></tr>" for name, value in shown.items() if value)
    seen = "".join(
        f"<figure><img src='data:image/jpeg;base64,{b64encode(data).decode()}' alt=''/>"
        f"<figcaption>{escape(name)}</figcaption></figure>"
        for name, data in sorted(pictures.items())
    )
    limits = "".join(
        f"<tr><td>{name.replace('_', ' ')}</td><td>{limit['low']:.0f} to {limit['high']:.0f}</td>"
        f"<td>{limit['velocity']:.0f}</td><td>{limit['acceleration']:.0f}</td></tr>"
        for name, limit in run.get("limits", {}).items()
    )
    heads = "<tr><th>limits, in joint units</th><th>position</th><th>velocity, /s</th><th>acceleration, /s²</th></tr>"
    return (
        (f"<table class='words'>{rows}</table>" if rows else "")
        + (f"<div class='seen'>{seen}</div>" if seen else "")
        + (f"<details><summary>limits of the guard</summary><table>{heads}{limits}</table></details>" if limits else "")
    )


def _seconds(facts: RunFacts) -> NDArray[np.float64]:
    start = facts.ticks[0]["now_ns"]
    return np.array([(tick["now_ns"] - start) / 1e9 for tick in facts.ticks])


def _timing(facts: RunFacts) -> str:
    x = _seconds(facts)
    ms = {
        name: np.array([tick[f"{name}_ns"] / 1e6 for tick in facts.ticks]) for name in ("late", "read", "write", "work")
    }
    states = [tick["state"] for tick in facts.ticks]
    strip = state_strip(x, states, STATE_COLOURS, float(x[-1]) + facts.header["period_ns"] / 1e9)
    names = {"late": "start after its time", "read": "bus read", "write": "bus write", "work": "whole tick"}
    rows = "".join(
        f"<tr><td>{names[name]}</td>" + "".join(f"<td>{value / 1e3:.3f}</td>" for value in quantiles.values()) + "</tr>"
        for name, quantiles in facts.times_us.items()
    )
    heads = "".join(f"<th>{name}</th>" for name in next(iter(facts.times_us.values())))
    return (
        "<h3>State of control</h3>"
        + strip
        + "<h3>How late each tick started</h3>"
        + line_plot(x, {"late": ms["late"]}, "ms")
        + "<h3>What each tick took</h3>"
        + line_plot(x, {"whole tick": ms["work"], "bus read": ms["read"], "bus write": ms["write"]}, "ms")
        + f"<table><tr><th>ms</th>{heads}</tr>{rows}</table>"
    )


def _blame(missed: Sequence[Missed], skipped: Counter[str], idle: Counter[str]) -> str:
    causes = (
        f"<h3>Skipped: the loop did not run in time</h3>{bar_plot(skipped, 'ticks')}"
        f"<h3>Without action: armed, and no action was due</h3>{bar_plot(idle, 'ticks')}"
    )
    if not missed:
        return causes
    rows = "".join(
        f"<tr><td>{item.first}{'' if item.ticks == 1 else f' to {item.last}'}</td><td>{item.ticks}</td>"
        f"<td>{'skipped' if item.skipped else 'no action'}</td><td>{item.cause.value}</td>"
        f"<td>{escape(item.why)}</td></tr>"
        for item in missed
    )
    heads = "".join(f"<th>{name}</th>" for name in ("tick", "ticks", "kind", "cause", "why"))
    return (
        f"{causes}<details><summary>every missed tick ({sum(item.ticks for item in missed)})</summary>"
        f"<table><tr>{heads}</tr>{rows}</table></details>"
    )


def _cache(facts: RunFacts) -> str:
    lines = [line for line in facts.inferences if "reason" in line]
    if not lines:
        return '<p class="none">no inference was logged in the time of this record</p>'
    start = facts.ticks[0]["now_ns"]
    x = np.array([(line["time_ns"] - start) / 1e9 for line in lines])
    times = {
        name: np.array([line["ms"][name] for line in lines])
        for name in PARTS
        if any(line["ms"][name] > 0 for line in lines)
    }
    similarity = np.array([np.nan if line.get("similarity") is None else line["similarity"] for line in lines])
    readings = [line.get("still") or line.get("guard") or {} for line in lines]  # "guard" in logs of before
    still = np.array([max((reading[0] for reading in by_slot.values()), default=np.nan) for by_slot in readings])
    prefixes = sum(line["prefix"] for line in lines)
    beside, hits = (sum(line["reason"] == reason for line in lines) for reason in ("beside", "reused"))
    used = [line for line in lines if line["reason"] in ("beside", "reused")]
    ages = [line["age_s"] for line in used if line.get("age_s") is not None] + [0.0] * (len(lines) - len(used))
    plans = [line["delay_ms"] / 1e3 for line in lines if line.get("outcome") == "sent" and "delay_ms" in line]
    cameras = max((len(line.get("vision", ())) for line in lines), default=0)
    looked = sum(len(line.get("vision", ())) for line in lines)
    verdicts = Counter(line["verdict"] for line in lines if line.get("verdict"))
    parts = [
        f'<div class="facts"><div><span>hits</span><b>{hits}</b></div><div><span>prefix '
        f"runs</span><b>{prefixes}</b></div><div><span>pictures looked at</span><b>{looked} of "
        f"{cameras * len(lines)}</b></div><div><span>planned beside a refresh</span><b>{beside}</b></div>"
        f"<div><span>age of the plan when it was sent, p50 and p99</span><b>{_ages(plans)}</b></div>"
        f"<div><span>age of the prefix, p50 and p99</span><b>{_ages(ages)}</b></div>"
        f"<div><span>delta runs</span><b>{sum(bool(line.get('delta')) for line in lines)}</b></div><div><span>hit "
        f"rate</span><b>{hits / len(lines):.0%}</b></div></div>",
        "<h3>Why pictures were looked at, or what they gave was reused</h3>"
        + bar_plot(Counter(line["reason"] for line in lines), "inferences"),
        "<h3>Parts of each inference</h3>" + line_plot(x, times, "ms"),
    ]
    if np.isfinite(similarity).any():
        parts.append(
            "<h3>Gate similarity and its threshold</h3>"
            + line_plot(
                x, {"similarity": similarity}, "cosine", facts.gate.get("threshold") if facts.gate else None, None
            )
        )
    limits = facts.gate or {}
    if np.isfinite(still).any():
        parts.append(
            "<h3>Change of the pictures, largest mean of the cameras</h3>"
            + line_plot(x, {"mean": still}, "grey levels", limits.get("still_mean", limits.get("guard_mean")))
        )
    if verdicts:
        parts.append("<h3>Verdicts of the gate</h3>" + bar_plot(verdicts, "inferences"))
    return "".join(parts)


def _ages(seconds: Sequence[float]) -> str:
    if not seconds:
        return "–"
    half, most = np.quantile(seconds, [0.5, 0.99])
    return f"{half * 1e3:.0f} and {most * 1e3:.0f} ms"


def _joints(facts: RunFacts) -> str:
    x = _seconds(facts)
    scale, offset = np.array(facts.header["maps"]).T
    present = (np.array([tick["position"] for tick in facts.ticks]) - offset) / scale
    goals = (np.array([tick["goals"] for tick in facts.ticks]) - offset) / scale
    written = np.array([tick["write"] for tick in facts.ticks])
    goals[~written] = np.nan
    seen = np.array([tick["read_result"] == 0 for tick in facts.ticks])
    present[~seen] = np.nan
    plots = [
        f"<h3>{name.replace('_', ' ')}</h3>"
        + line_plot(x, {"present": present[:, k], "goal": goals[:, k]}, "joint units", floor=None)
        for k, name in enumerate(facts.header["joints"])
    ]
    return (
        "".join(plots)
        + "<h3>Limits the guard met</h3>"
        + bar_plot(
            Counter(tick["verdict"] for tick in facts.ticks if tick["verdict"] != "passed" and tick["due"]), "ticks"
        )
    )
