# SPDX-License-Identifier: Apache-2.0
"""Why a tick brought nothing: every missed tick of a run, each with its cause. Pure: records in, causes out.

Two kinds. A *skipped* tick did not run at all: its time had passed when the loop woke. A tick *without action* ran,
armed, and no action was due in it: the arm held. The first is between control, its bus and the system's scheduler; the
second is blamed on what inference was doing at that moment.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any


class Cause(Enum):
    """CAMERA: pictures were waited for or a camera was frozen. BUS: reading or writing took too long or failed. GATE:
    the scene changed and the running chunk was void. PREFIX: vision and prefix were running. STEP: state token and flow
    steps were running. SCHEDULER: nothing of ours was running: the system did not wake the loop, or no plan was due
    yet. RECORD: the record is damaged there, so that nobody knows whether the tick ran."""

    CAMERA = "camera"
    BUS = "bus"
    GATE = "gate"
    PREFIX = "prefix"
    STEP = "step"
    SCHEDULER = "scheduler"
    RECORD = "record"


@dataclass(frozen=True, slots=True)
class Missed:
    """Ticks first..last, one behind the other, missed for one cause. skipped: they did not run; else without action."""

    first: int
    last: int
    skipped: bool
    cause: Cause
    why: str

    @property
    def ticks(self) -> int:
        return self.last - self.first + 1


@dataclass(frozen=True, slots=True)
class InferenceSpan:
    """When an inference ran, CLOCK_MONOTONIC ns: pictures until `looked_ns`, vision and prefix until `prefix_ns`, state
    and flow until `end_ns`. changed: the gate said so."""

    start_ns: int
    looked_ns: int
    prefix_ns: int
    end_ns: int
    changed: bool


def spans_of(lines: Iterable[Mapping[str, Any]]) -> list[InferenceSpan]:
    """The inferences of an `inference.jsonl`, oldest first; its other lines are passed over."""
    spans = []
    for line in lines:
        if "delay_ms" not in line or "ms" not in line:
            continue
        ms, end = line["ms"], line["time_ns"]
        start = end - int(line["delay_ms"] * 1e6)
        computed = end - int((ms["state"] + ms["flow"]) * 1e6)
        looked = max(start, computed - int((ms["vision"] + ms["prefix"]) * 1e6))
        spans.append(InferenceSpan(start, looked, max(start, computed), end, line.get("verdict") == "changed"))
    return sorted(spans, key=lambda span: span.start_ns)


def camera_faults_of(lines: Iterable[Mapping[str, Any]]) -> list[int]:
    """When a camera was found frozen, ns."""
    return sorted(line["time_ns"] for line in lines if "camera_fault" in line)


def missed_ticks(
    ticks: Sequence[Mapping[str, Any]],
    period_ns: int,
    chunk_rows: Mapping[int, int],
    spans: Sequence[InferenceSpan],
    faults: Sequence[int] = (),
    after_damage: frozenset[int] = frozenset(),
) -> list[Missed]:
    """Every missed tick of the record, none left out, in order. chunk_rows: actions of each chunk by its sequence.
    after_damage: see `ticks_after_damage`."""
    found: list[Missed] = []
    starts = [span.start_ns for span in spans]
    cut = False
    """the last chunk ended before its last action"""
    before: Mapping[str, Any] | None = None
    for tick in ticks:
        if before is not None and tick["tick"] > before["tick"] + 1:
            lost = Missed(before["tick"] + 1, tick["tick"] - 1, True, Cause.RECORD, "the record is damaged here")
            _add(found, lost if tick["tick"] in after_damage else _skipped(before, tick, period_ns))
        if tick["due"]:
            cut = tick["action_index"] + 1 < chunk_rows.get(tick["action_sequence"], 0)
        elif waits_for_action(tick):
            cause, why = _without_action(tick, spans, starts, faults, cut)
            _add(found, Missed(tick["tick"], tick["tick"], False, cause, why))
        before = tick
    return found


def waits_for_action(tick: Mapping[str, Any]) -> bool:
    """Armed and taking chunks, and none was due: not where the operator, a fault or a latch keeps the arm still."""
    return (
        tick["state"] in ("planning", "hold")
        and not tick["latched"]
        and not tick["due"]
        and tick["reason"] not in ("operator", "parked")
    )


def count_by_cause(missed: Iterable[Missed], skipped: bool) -> Counter[str]:
    """Ticks of one kind by cause."""
    counts: Counter[str] = Counter()
    for item in missed:
        if item.skipped is skipped:
            counts[item.cause.value] += item.ticks
    return counts


def _skipped(before: Mapping[str, Any], after: Mapping[str, Any], period_ns: int) -> Missed:
    first, last = before["tick"] + 1, after["tick"] - 1
    bus_ns, work_ns = before["read_ns"] + before["write_ns"], before["work_ns"]
    cause = Cause.SCHEDULER
    if before["late_ns"] + work_ns <= period_ns:
        late_ns = (last - first + 1) * period_ns + after["late_ns"]
        why = f"tick {before['tick']} ended in time, the loop was woken {late_ns / 1e6:.1f} ms late"
    elif 2 * bus_ns >= work_ns:
        cause, why = Cause.BUS, f"tick {before['tick']} spent {bus_ns / 1e6:.1f} ms at the bus"
    else:
        spent = f"{work_ns / 1e6:.1f} ms, {bus_ns / 1e6:.1f} of them at the bus"
        why = f"tick {before['tick']} was interrupted: {spent}"
    return Missed(first, last, True, cause, why)


def _without_action(
    tick: Mapping[str, Any], spans: Sequence[InferenceSpan], starts: Sequence[int], faults: Sequence[int], cut: bool
) -> tuple[Cause, str]:
    now = tick["now_ns"]
    if tick["read_result"] != 0:
        return Cause.BUS, "the joint reading failed"
    index = bisect.bisect_right(starts, now) - 1
    fault = bisect.bisect_right(faults, now) - 1
    if fault >= 0 and (index < 0 or faults[fault] > spans[index].start_ns):
        return Cause.CAMERA, "a camera was frozen"
    if index < 0 or now > spans[index].end_ns:
        at_rest = "the host plans only at rest and waited for the arm to settle"
        return Cause.SCHEDULER, at_rest if tick["plan_then_move"] else "no inference was running"
    span = spans[index]
    if now < span.looked_ns:
        return Cause.CAMERA, "pictures were fetched and prepared"
    if now < span.prefix_ns:
        return Cause.PREFIX, "vision and prefix were running"
    if span.changed and cut:
        return Cause.GATE, "the scene changed: the rest of the chunk was void"
    return Cause.STEP, "the flow was running"


def _add(found: list[Missed], item: Missed) -> None:
    """Neighbours of one cause and reason become one entry."""
    if found and not item.skipped and not found[-1].skipped:
        last = found[-1]
        if (last.cause, last.why) == (item.cause, item.why) and last.last + 1 == item.first:
            found[-1] = Missed(last.first, item.last, False, item.cause, item.why)
            return
    found.append(item)
