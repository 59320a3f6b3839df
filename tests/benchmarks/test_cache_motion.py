# SPDX-License-Identifier: Apache-2.0
"""The comparison of the cache's policies in motion: its arithmetic, and its short cut against a real session."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vla_edge.benchmarks.flow import cache_motion
from vla_edge.benchmarks.flow.cache_motion import (
    Point,
    confirmed,
    front,
    hits_at,
    in_session,
    lateness_ms,
    measured,
    scaled,
    swept,
)
from vla_edge.bundle import open_bundle
from vla_edge.engines.engine import EngineOptions, load_engine
from vla_edge.robot.sim.render import rendering_fault
from vla_edge.runtime.inference.cache import CacheMode
from vla_edge.runtime.inference.scene_gate import GateSettings

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "reach-cube" / "bundle"
FAULT = rendering_fault()


def point(hit_rate: float, error_p95: float) -> Point:
    return Point(1.0, 1.0, hit_rate, error_p95, ())


def test_a_change_is_late_until_the_first_plan_on_a_prefix_that_saw_it() -> None:
    used = np.array([0, 0, 0, 3, 3, 5])
    assert lateness_ms(used, [1, 3, 4]) == pytest.approx([2000 / 30, 0, 1000 / 30])
    assert lateness_ms(np.array([0, 0, 0]), [1]) == pytest.approx([2000 / 30]), "never seen: up to the end"


def test_hits_at_the_bound_lie_on_the_front_between_its_points() -> None:
    points = [point(0, 0), point(0.4, 0.02), point(0.3, 0.015), point(0.2, 0.005), point(0.1, 0.006)]
    assert [found.hit_rate for found in front(points)] == [0, 0.2, 0.3, 0.4]
    assert hits_at(points, 0.01) == pytest.approx(0.25)
    assert hits_at(points, 1.0) == 0.4


def test_the_most_hits_count_that_a_session_gets_within_the_bound() -> None:
    points = [point(0.1, 0.001), point(0.2, 0.005), point(0.3, 0.009), point(0.4, 0.02)]
    asked: list[float] = []

    def session(at: Point) -> Point:
        asked.append(at.hit_rate)
        return point(at.hit_rate, at.error_p95 * 1.5)

    assert confirmed(points, 0.01, session) == (points[1], point(0.2, 0.0075)) and asked == [0.3, 0.2]


def test_limits_are_scaled_and_a_threshold_stays_a_cosine() -> None:
    limits = GateSettings("pooled", 0.9, 1.0, 10.0)
    assert scaled(limits, 2, 0.5) == GateSettings("pooled", 0.95, 2.0, 20.0)
    assert scaled(limits, 0, 100).threshold == -1.0


@pytest.mark.skipif(FAULT is not None, reason=str(FAULT))
def test_what_pairs_tell_of_a_policy_is_what_a_session_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_motion, "PHASE_S", 0.4)
    bundle, engine = open_bundle(EXAMPLE), load_engine("ort", EngineOptions(threads=1))
    walks = list(measured(bundle, engine, range(1), 3))
    assert len(walks[0].moves) == 2 and walks[0].moving.any()
    for mode, still in ((CacheMode.STILL, 255.0), (CacheMode.STILL, 2.0), (CacheMode.GATED, 255.0)):
        limits = GateSettings("pooled", 0.9999, still, still, max_reuse=3)
        told = swept(walks, mode, limits, 1, 1)
        real = in_session(bundle, engine, walks, mode, limits, told)
        assert (told.hit_rate, told.late_ms) == (real.hit_rate, real.late_ms)
        assert told.error_p95 == pytest.approx(real.error_p95, rel=0.05, abs=1e-6)
    assert told.hit_rate < 0.75 and swept(walks, CacheMode.STILL, limits, 1, 1).hit_rate > 0.7
