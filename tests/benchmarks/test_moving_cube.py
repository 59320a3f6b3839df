# SPDX-License-Identifier: Apache-2.0
"""The bench of a moving cube: its cube swings, and a refresh beside the plans takes the ticks it is said to take."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vla_edge.benchmarks.flow import moving_cube
from vla_edge.benchmarks.host import REPOSITORY
from vla_edge.bundle import open_bundle
from vla_edge.engines.engine import EngineOptions, load_engine


def test_the_cube_comes_back_and_is_followed_from_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert moving_cube.swing(0) == 0 and moving_cube.swing(60) == pytest.approx(moving_cube.SWING_DEG)
    assert moving_cube.swing(240) == pytest.approx(0, abs=1e-9)
    monkeypatch.setattr(moving_cube, "SECONDS", 0.5)
    monkeypatch.setattr(moving_cube, "JUDGED_S", 0.0)
    monkeypatch.setattr(moving_cube, "DELAYS", (2,))
    made: list[moving_cube.DelayedPlanner] = []

    class Kept(moving_cube.DelayedPlanner):
        def __init__(self, *words: object) -> None:
            super().__init__(*words)  # type: ignore[arg-type]
            made.append(self)

    monkeypatch.setattr(moving_cube, "DelayedPlanner", Kept)
    bundle, engine = (
        open_bundle(REPOSITORY / "examples/reach-cube/bundle"),
        load_engine("ort", EngineOptions(threads=1)),
    )
    (rows,) = moving_cube.rows_of(bundle, engine, range(1))
    front, beside = rows["in front, 2 ticks"], rows["beside, 2 ticks"]
    assert front["plans_a_second"] == 10 and beside["plans_a_second"] == 30
    assert set(made[0].ages_s) == {0.0}, "in front every plan has a prefix of its own"
    # A refresh begins with one plan and is gone over to two ticks later, where the next one begins.
    ticks = np.array(made[1].ages_s) * moving_cube.HZ
    np.testing.assert_allclose(ticks[:8], [0, 1, 2, 2, 3, 2, 3, 2], atol=0.01)
    assert len(front["errors_m"]) == 1 and math.isfinite(beside["error_cm"]) and 0 <= beside["nearer"] <= 1
    assert "| beside, 2 ticks | 30 |" in moving_cube.page(rows, 1)
