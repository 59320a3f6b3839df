# SPDX-License-Identifier: Apache-2.0
"""What a run is told as: the live line, the summary in numbers, and the closing sentences.

From control's last status, its flight record and inference's own last line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from vla_edge.errors import ControlError
from vla_edge.runtime.control.faults import ARM_AGAIN, fault_of, joint_of
from vla_edge.runtime.control.flight_record import faults_of, open_record, tick_times, ticks_of
from vla_edge.runtime.control.operator import prefix_age, read_status
from vla_edge.runtime.control.run_folder import RunFolder

PHASE_S = 1 / 3
"""Behind the first action of a motion (start) or of a chunk that took over (hand-over)."""
DEGREES_PER_COUNT = 360 / 4096
_AT = {"start": "where a motion starts", "hand-over": "where chunks take over", "steady": "in between"}


def one_line(status: Mapping[str, Any], inference: Mapping[str, Any]) -> str:
    """The live line."""
    joint = f"{joint_of(status)} ".lstrip()
    latched = ", latched" if status["latched"] else ""
    why = f" ({joint}{status['reason']}{latched})" if status["reason"] else ""
    age = f"{status['age_ns'] / 1e6:.0f} ms" if status["age_ns"] >= 0 else "-"
    age += f", prefix {old}" if (old := prefix_age(inference)) else ""
    refused = sum(status["chunks"].values()) - status["chunks"]["taken"]
    clamped = sum(status["verdicts"].values()) - status["verdicts"]["passed"]
    return (
        f"{status['state']}{why}  {1e9 / status['period_ns']:.0f} Hz  missed {status['missed']}  chunks "
        f"{status['chunks']['taken']}{f' (+{refused} refused)' if refused else ''}  age {age}  clamped {clamped}"
        f"{'  SHADOW' if status['shadow'] else ''}"
    )


def summarize(
    folder: RunFolder,
    inference: Mapping[str, Any],
    wrong: Mapping[str, Any] | None = None,
    ailing: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The run in numbers. wrong: a status with the fault or hold that nobody asked for and that the end came after.
    ailing: what control found its servos to have when it ended."""
    status = read_status(folder)
    why = status if wrong is None else wrong
    chunks = status["chunks"]
    try:
        reader = open_record(Path(status["record"]))
        ticks, times, maps = list(ticks_of(reader)), tick_times(reader), reader.header()["maps"]
    except ControlError:
        ticks, times, maps = [], {}, []
    faults = [found["fault"] for found in faults_of(ticks)]
    armed = [tick for tick in ticks if tick["state"] not in ("disarmed", "fault")]
    return {
        "state": why["state"],
        "reason": why["reason"],
        "fault": fault_of(why, ailing).replace(ARM_AGAIN, "start again"),
        "earlier_faults": faults[:-1] if fault_of(why) else faults,
        "latched": why["latched"],
        "ticks": status["ticks"],
        "missed": status["missed"],
        "hz": 1e9 / status["period_ns"],
        "fps": 1e9 / status["action_ns"],
        "armed_s": len(armed) * status["period_ns"] / 1e9,
        "motion_share": sum(tick["due"] for tick in armed) / max(1, len(armed)),
        "chunks_taken": chunks["taken"],
        "chunks_refused": {name: count for name, count in chunks.items() if name != "taken" and count},
        "verdicts": {name: count for name, count in status["verdicts"].items() if count},
        "guard_degrees": guard_changes(ticks, maps, round(PHASE_S * 1e9 / status["period_ns"])),
        "lost_reads": status["lost_reads"],
        "minor_faults": status["minor_faults"],
        "fifo": status["fifo"],
        "shadow": status["shadow"],
        "io_max_us": status["io_max_ns"] / 1e3,
        "times_us": times,
        "record": status["record"],
        "inference": dict(inference),
    }


def guard_changes(
    ticks: Sequence[Mapping[str, Any]], maps: Sequence[tuple[float, float]], phase_ticks: int = 10
) -> dict[str, float]:
    """How far goals lay from the actions that were due, degrees at the joint furthest off: the mean of the ticks in
    which a motion starts, in which a new chunk takes over (phase_ticks each), and of the others. maps: counts = scale ·
    unit + offset."""
    found: dict[str, list[float]] = {"start": [], "hand-over": [], "steady": []}
    phase, since, before = "steady", phase_ticks, None
    scale, offset = np.array(maps).T if maps else (0, 0)
    for tick in ticks:
        if not tick["due"] or tick["state"] == "parking":
            before = None
            continue
        if before is None:
            phase, since = "start", 0
        elif tick["action_sequence"] != before:
            phase, since = "hand-over", 0
        off = np.abs(np.array(tick["action"]) * scale + offset - np.array(tick["goals"])).max()
        found[phase if since < phase_ticks else "steady"].append(float(off) * DEGREES_PER_COUNT)
        since, before = since + 1, tick["action_sequence"]
    return {name: round(float(np.mean(values)), 2) for name, values in found.items() if values}


def tell(summary: Mapping[str, Any], console: Console) -> None:
    """The closing sentences: what the arm did, what the policy did, what the guard changed, where to look next."""
    late = summary["times_us"].get("late", {})
    lines = [
        f"Armed for {summary['armed_s']:.1f} s, {summary['motion_share']:.0%} of it with an action; "
        f"{summary['missed']} "
        f"of {summary['ticks']} ticks missed (starts late by {late.get('p50', 0):.0f} µs, p99 "
        f"{late.get('p99', 0):.0f})."
    ]
    cache = summary["inference"].get("cache")
    if cache:
        ran = cache.get("inferences", 0)
        refused = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in summary["chunks_refused"].items())
        looked, kept = (sum(cache.get(f"vision_{what}", {}).values()) for what in ("runs", "hits"))
        lines.append(
            f"{ran} inferences, {cache.get('hits', 0)} of them reused what an earlier one saw "
            f"({kept / max(1, looked + kept):.0%} of the pictures); "
            f"{summary['chunks_taken']} chunks taken, refused: {refused or 'none'}."
        )
    if old := prefix_age(summary["inference"]):
        lines.append(f"The prefixes of the last plans were {old} old.")
    for why in (summary["inference"].get(name) for name in ("slow_refresh", "no_audit")):
        if why:
            lines.append(f"{why[0].upper()}{why[1:]}.")
    changed = summary["guard_degrees"]
    if changed:
        changes = ", ".join(f"{degrees:.1f}° {_AT[name]}" for name, degrees in changed.items())
        lines.append(f"The guard changed actions by {changes} (mean of the joint furthest off).")
    if summary["earlier_faults"]:
        causes = ", ".join(dict.fromkeys(fault.split(";")[0] for fault in summary["earlier_faults"]))
        lines.append(f"On the way it stood still unasked: {causes}.")
    if summary["fault"]:
        lines.append(f"{summary['fault']}.")
    lines.append(f"Record: {summary['record']}; look at it with `vla-runtime report {summary['record']}`.")
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False)
