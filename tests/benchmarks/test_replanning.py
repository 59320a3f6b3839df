# SPDX-License-Identifier: Apache-2.0
"""What the bench of replanning makes of a run's log and of its results."""

from __future__ import annotations

import pytest

from vla_edge.benchmarks.flow.replanning import CALM, CHANGING, REST, WHOLE, missed_bars, rates_of

MS = 1_000_000


def plan(at_ms: float, reason: str = "reused", age_s: float | None = 0.2, **more: object) -> dict[str, object]:
    line = {"time_ns": at_ms * MS, "reason": reason, "age_s": age_s, "delay_ms": 30.0, "outcome": "sent"}
    return {**line, "prefix": False, "adopted": None, "refreshing": False, **more}


def test_plans_are_counted_apart_while_a_prefix_is_made_beside_them() -> None:
    # The first refresh is of a scene that stands still, for its age.
    plans = [plan(0), plan(40), plan(80, refreshing=True), plan(180, "beside", 0.4, refreshing=True)]
    plans += [plan(280, "beside", 0.5), plan(320, adopted={"age_s": 0.1}), plan(330, outcome="scene_moved")]
    found = rates_of(plans, 500 * MS)
    assert found["plans_a_second"] == 12
    assert found["plans_a_second_between_refreshes"] == pytest.approx(25)
    assert found["plans_a_second_during_refreshes"] == pytest.approx(10)
    assert found["refreshes"] == 1 and found["plan_age_ms"]["p99"] == 30 and found["prefix_age_ms"]["max"] == 500


def test_a_plan_that_made_its_own_prefix_has_one_of_no_age() -> None:
    assert rates_of([plan(0, "no_history", None, prefix=True)], 1000 * MS)["prefix_age_ms"]["max"] == 0


def test_every_bar_that_is_missed_is_named_with_what_was_found() -> None:
    good = {"plans_a_second_between_refreshes": 26.0, "missed_ticks": 0, "plan_age_ms": {"p50": 29.0, "p99": 33.0}}
    result = {"headlines": {WHOLE: {"against_ten_cached": 7.2}}, "runs": {CALM: good, REST: good, CHANGING: good}}
    assert missed_bars(result) == []
    late = {**good, "plan_age_ms": {"p50": 29.0, "p99": 34.0}}
    assert missed_bars({**result, "runs": {CALM: late, REST: good, CHANGING: late}}) == ["p99 of a plan 34.0 ms"]
    slow = {**good, "plans_a_second_between_refreshes": 20.0, "missed_ticks": 3}
    few = {"headlines": {WHOLE: {"against_ten_cached": 6.9}}, "runs": {CALM: good, REST: slow, CHANGING: good}}
    assert missed_bars(few) == ["against_ten_cached 6.9", "plans_a_second 20.0", "3 ticks, at rest"]
