# SPDX-License-Identifier: Apache-2.0
"""Two result files against each other: is the second slower than the first by more than a factor?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_edge.benchmarks.measure import SCHEMA
from vla_edge.errors import CheckFailed, ConfigError
from vla_edge.fields import read_object


@dataclass(frozen=True, slots=True)
class Change:
    """One subject's case: medians in ms, and their ratios to the baseline of their own run where it has one."""

    subject: str
    case: str
    before_ms: float
    after_ms: float
    factor: float


def read_result(path: Path) -> dict[str, Any]:
    """ConfigError: not a result of this version."""
    content = read_object(path, ConfigError, "give a JSON file written by vla-bench")
    if content.get("schema") != SCHEMA or not _has_times(content):
        raise ConfigError(f"{path}: not a vla-bench result of schema {SCHEMA}; measure again")
    return content


def _has_times(content: dict[str, Any]) -> bool:
    """Whether every case of every subject has the median that is compared, and the baseline is one of them."""
    try:
        medians = [
            case["whole_tick_ms"]["p50"]
            for subject in content["subjects"].values()
            for case in subject["cases"].values()
        ]
        if content["baseline"] is not None:
            medians.append(_base(content, content["baseline"]))
    except (KeyError, TypeError, AttributeError):
        return False
    return all(isinstance(median, (int, float)) and median > 0 for median in medians)


def compare(before: dict[str, Any], after: dict[str, Any]) -> list[Change]:
    """Every case that both have. When both runs share a baseline, `factor` is of the times relative to it, so that a
    slower machine does not count as a slower program. ConfigError: nothing in common."""
    shared = before["baseline"] if before["baseline"] == after["baseline"] else None
    changes = []
    for name, subject in before["subjects"].items():
        other = after["subjects"].get(name, {"cases": {}})
        for case, found in subject["cases"].items():
            if case not in other["cases"] or (name == shared and len(before["subjects"]) > 1):
                continue
            old, new = found["whole_tick_ms"]["p50"], other["cases"][case]["whole_tick_ms"]["p50"]
            scale = _base(before, shared) / _base(after, shared) if shared and name != shared else 1.0
            changes.append(Change(name, case, old, new, new / old * scale))
    if not changes:
        raise ConfigError(
            f"the results have no subject and case in common: {', '.join(before['subjects'])} and "
            f"{', '.join(after['subjects'])}"
        )
    return changes


def gate(changes: list[Change], limit: float) -> None:
    """CheckFailed when a case became slower than `limit` times."""
    worst = max(changes, key=lambda change: change.factor)
    if worst.factor > limit:
        raise CheckFailed(
            f"{worst.subject} {worst.case} takes {worst.factor:.2f} times as long as before ({worst.before_ms:.1f} → "
            f"{worst.after_ms:.1f} ms), limit {limit:g}"
        )


def _base(result: dict[str, Any], name: str) -> float:
    value: float = result["subjects"][name]["cases"]["fresh"]["whole_tick_ms"]["p50"]
    return value
