# SPDX-License-Identifier: Apache-2.0
"""What inference tells of itself: one line of JSON for each inference, and the newest summary for others to read.

`inference.jsonl` holds which pieces ran, why, the similarity values and the milliseconds of each; at its size limit the
file is moved aside once. `inference.json` is replaced whole, at most four times a second.
"""

from __future__ import annotations

import os
import sys
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vla_edge.files import json_text, write_json
from vla_edge.runtime.control.flight_record import quantiles
from vla_edge.runtime.control.handover import Pace
from vla_edge.runtime.inference.cache import CacheCounts
from vla_edge.runtime.inference.session import InferenceResult

PARTS = ("prepare", "vision", "prefix", "state", "flow", "total")
WINDOW = 500
"""Inferences whose part times the quantiles are of."""
SEVERAL = 10
"""Audits that were due without time for any, before it is said."""
NO_AUDIT = (
    "nothing that a plan reused is checked against a fresh inference: no audit that was due had time, as what is left "
    "of a chunk lasts shorter than two of them; a bundle of more actions a chunk has time, --audit 0 asks for none"
)


def entry_of(result: InferenceResult) -> dict[str, Any]:
    """The honest record of one inference, ready for JSON."""
    decision = result.decision
    return {
        "reason": decision.reason.value,
        "vision": list(decision.look),
        "prefix": result.timings.prefix > 0,
        "delta": decision.delta,
        "age_s": decision.age_s,
        "still": {str(slot): [reading.mean, reading.worst] for slot, reading in decision.still.items()},
        "verdict": None if result.verdict is None else result.verdict.value,
        "similarity": result.similarity,
        "adopted": None if result.adopted is None else asdict(result.adopted),
        "steps": len(result.timings.step),
        "draw": result.draw,
        "ms": {name: round(getattr(result.timings, name), 3) for name in PARTS},
    }


class InferenceLog:
    """Writes both files of one run. Owned by the inference process alone."""

    def __init__(self, folder: Path, limit_bytes: int = 8 << 20) -> None:
        self._lines = folder / "inference.jsonl"
        self._summary = folder / "inference.json"
        self._limit = limit_bytes
        self._times: dict[str, deque[float]] = {name: deque(maxlen=WINDOW) for name in (*PARTS, "step")}
        self._prefix_ages_ms: deque[float] = deque(maxlen=WINDOW)
        self.events: Counter[str] = Counter()
        self.slow_refresh = ""
        """why plans wait for their refreshes, in words; empty while they need not"""
        self.stopped = ""
        """why nothing more is written: a full disk must not end inference"""
        self._file = self._lines.open("ab", buffering=0)

    def close(self) -> None:
        self._file.close()

    def inference(self, result: InferenceResult, facts: Mapping[str, Any]) -> None:
        """Write one line: `facts` (what the process knows of it) and the record of `result`."""
        self._prefix_ages_ms.append(0.0 if result.decision.prefix else (result.decision.age_s or 0.0) * 1e3)
        for name in PARTS:
            value = getattr(result.timings, name)
            if value > 0:
                self._times[name].append(value)
        self._times["step"].extend(result.timings.step)
        self.line({**facts, **entry_of(result)})

    def parts_ms(self) -> dict[str, dict[str, float]]:
        """p50, p99 and max of each part of the last inferences, where it ran."""
        return {name: quantiles(values, ("p50", "p99", "max")) for name, values in self._times.items() if values}

    def line(self, content: Mapping[str, Any]) -> None:
        """Append one JSON object."""
        if self.stopped:
            return
        try:
            if self._file.tell() > self._limit:
                self._file.close()
                self._lines.replace(self._lines.with_name("inference.jsonl.1"))
                self._file = self._lines.open("ab", buffering=0)
            self._file.write((json_text(content) + "\n").encode())
        except OSError as error:
            self._stop(error)

    def audit_without_time(self, counts: CacheCounts, say: Callable[[str], None]) -> None:
        """Count an audit that was due; say it, once, where several were and none was made."""
        self.events["audits_without_time"] += 1
        if self.events["audits_without_time"] == SEVERAL and not counts.audits:
            say(f"inference: {NO_AUDIT}")

    def summary(self, state: str, pace: Pace | None, counts: CacheCounts, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Write and return the newest summary. state: "measuring", "ready", "fault" or "stopped"."""
        content = {
            "state": state,
            "pid": os.getpid(),
            "pace": None if pace is None else {**asdict(pace), "rhythm": pace.rhythm.value},
            "cache": counts.facts(),
            "events": dict(self.events),
            "parts_ms": self.parts_ms(),
            **facts,
        }
        if self._prefix_ages_ms:
            content["prefix_age_ms"] = quantiles(self._prefix_ages_ms, ("p50", "p99"))
        if self.slow_refresh:
            content["slow_refresh"] = self.slow_refresh
        if self.events["audits_without_time"] >= SEVERAL and not counts.audits:
            content["no_audit"] = NO_AUDIT
        try:
            write_json(self._summary, content, indent=None, flush=False)
        except OSError as error:
            self._stop(error)
        return content

    def _stop(self, error: OSError) -> None:
        if not self.stopped:
            self.stopped = error.strerror or str(error)
            print(
                f"inference: its log in {self._lines.parent} stopped: {self.stopped}; the arm goes on, free some "
                "space before the next run",
                file=sys.stderr,
                flush=True,
            )
