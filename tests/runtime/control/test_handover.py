# SPDX-License-Identifier: Apache-2.0
"""Chunk to chunk: rhythm of the host, steps that fit, and the tie of a new chunk to the executing one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vla_edge.errors import ConfigError
from vla_edge.runtime.control.handover import (
    HAND_OVER,
    ONE_PASS,
    DelayMeter,
    Ensemble,
    HandOver,
    HandOverOptions,
    PlannedChunk,
    Rhythm,
    handover_of,
    inpaint_into,
    pace_of,
    rows_of,
)


def planned(latent, start_tick):
    """A chunk of which only the latent rows matter."""
    return PlannedChunk(latent, start_tick)


def test_a_fast_host_overlaps_and_a_slow_one_plans_then_moves():
    assert pace_of(0.05, 0.06, 50, 1 / 30).rhythm is Rhythm.OVERLAPPED
    slow = pace_of(3.0, 3.1, 50, 1 / 30)
    assert slow.rhythm is Rhythm.PLAN_THEN_MOVE
    # 1.667 s of motion in 1.667 + 3 + 0.033 s.
    assert slow.motion_share == pytest.approx(0.3546, abs=1e-3)
    assert "plan-then-move" in slow.sentence() and "35%" in slow.sentence()


def test_a_chunk_must_outlast_two_slow_inferences_to_overlap():
    assert pace_of(0.5, 0.79, 50, 1 / 30).rhythm is Rhythm.OVERLAPPED
    assert pace_of(0.5, 0.81, 50, 1 / 30).rhythm is Rhythm.PLAN_THEN_MOVE


def test_the_meter_forgets_and_reports_quantiles():
    meter = DelayMeter(window=100)
    for delay in np.linspace(0.9, 1.0, 100):
        meter.add(delay, (1.0, 3.0))
    for delay in np.linspace(0, 0.099, 100):
        meter.add(delay, ())
    assert meter.count == 100 and meter.p50_s == pytest.approx(0.0495) and meter.p99_s == pytest.approx(0.09801)
    assert meter.step_s == pytest.approx(0.002)


def test_a_meter_without_measurements_reads_zero():
    assert (DelayMeter().p50_s, DelayMeter().p99_s, DelayMeter().step_s) == (0, 0, 0)


@pytest.mark.parametrize(("available_s", "steps"), [(1.0, 10), (0.26, 4), (0.14, 2), (-1.0, 2)])
def test_anytime_takes_the_steps_that_fit_never_fewer_than_the_least(available_s, steps):
    # 0.05 s for all but the steps, 0.05 s each: (0.26 − 0.05) / 0.05 = 4.2.
    meter = DelayMeter()
    meter.add(0.55, [50.0] * 10)
    assert meter.steps_in(available_s, 2, 10) == steps


def test_anytime_without_a_measurement_takes_all_steps():
    assert DelayMeter().steps_in(0.1, 1, 10) == 10


def test_the_tie_freezes_what_will_be_executed_and_lets_go_of_the_rest():
    executing = planned(np.arange(50, dtype=np.float32)[:, None] * np.ones(32, np.float32), 100)
    tie = inpaint_into(executing, tick=120, delay_actions=5, rows=50, horizon=50)
    assert tie is not None
    # Row 0 of the new chunk is due at tick 120, when row 20 of the executing one is.
    assert tie.target[0, 0] == 20 and tie.target[29, 0] == 49
    assert (tie.weights[:5] == 1).all() and (tie.weights[30:] == 0).all()
    soft = tie.weights[5:30]
    assert (np.diff(soft) < 0).all() and 0 < soft[-1] < soft[0] < 1


def test_a_late_tie_freezes_all_that_is_left_and_a_past_chunk_ties_nothing():
    executing = planned(np.ones((10, 32), np.float32), 0)
    tie = inpaint_into(executing, tick=8, delay_actions=30, rows=50, horizon=50)
    assert tie is not None and tie.weights.tolist() == [1, 1] + [0] * 48
    assert inpaint_into(executing, tick=10, delay_actions=1, rows=50, horizon=50) is None


@pytest.mark.parametrize(("horizon", "delay_actions", "tied"), [(10, 3, 10), (10, 12, 12), (1, 1, 1)])
def test_no_more_rows_than_the_horizon_are_tied_but_all_that_will_have_been_executed(horizon, delay_actions, tied):
    executing = planned(np.ones((50, 32), np.float32), 0)
    tie = inpaint_into(executing, tick=10, delay_actions=delay_actions, rows=50, horizon=horizon)
    assert tie is not None and np.flatnonzero(tie.weights).tolist() == list(range(tied))
    assert (tie.weights[:delay_actions] == 1).all()


@pytest.mark.parametrize("kind, step", [("blend", "expert"), ("ensemble", "expert"), (None, ""), ("replace", "")])
def test_a_horizon_that_nothing_reads_is_refused(kind, step):
    with pytest.raises(ConfigError, match="--inpaint-horizon 5 is of --handover inpaint, this run's is"):
        handover_of(kind, 5, manifest(step))
    assert handover_of(None, 5, manifest("expert")).horizon == 5


def manifest(step, coefficient=None):
    """What `handover_of` reads of a manifest."""
    programme = SimpleNamespace(step=step)
    return SimpleNamespace(programme=programme, policy=SimpleNamespace(ensemble_coefficient=coefficient))


@pytest.mark.parametrize(
    ("given", "step", "coefficient", "kind"),
    [
        (None, "expert", None, HAND_OVER),
        (None, "", None, ONE_PASS),
        (None, "", 0.02, HandOver.ENSEMBLE),
        ("replace", "", 0.02, HandOver.REPLACE),
        ("ensemble", "expert", None, HandOver.ENSEMBLE),
    ],
)
def test_a_policy_has_its_own_hand_over_unless_told(given, step, coefficient, kind):
    options = handover_of(given, None, manifest(step, coefficient))
    assert options.kind is kind and options.coefficient == (coefficient or 0.01)


def test_a_chunk_of_one_pass_is_not_inpainted():
    with pytest.raises(ConfigError, match="choose replace, blend or ensemble"):
        handover_of("inpaint", None, manifest(""))


def test_an_ensemble_averages_what_overlaps_and_forgets_when_told():
    one, two = np.zeros((4, 2), np.float32), np.ones((4, 2), np.float32)
    ensemble = Ensemble(0.0, 4)
    np.testing.assert_array_equal(ensemble.join(one, 10, False), one)
    np.testing.assert_array_equal(ensemble.join(two, 12, False)[:, 0], [0.5, 0.5, 1, 1])
    np.testing.assert_array_equal(ensemble.join(one, 13, True), one)
    np.testing.assert_array_equal(ensemble.join(two, 13, False), two)  # not later than the last: it replaces
    np.testing.assert_array_equal(ensemble.join(one, 30, False), one)  # nothing overlaps


def test_an_ensemble_sends_whole_chunks():
    policy: Any = SimpleNamespace(chunk_size=100, n_action_steps=1)
    assert rows_of(policy, HandOverOptions(HandOver.ENSEMBLE)) == 100
    assert rows_of(policy, HandOverOptions(HandOver.BLEND)) == 1


def test_only_blend_asks_the_control_core_for_ticks():
    assert {kind: kind.blend_actions > 0 for kind in HandOver} == {
        HandOver.REPLACE: False, HandOver.BLEND: True, HandOver.INPAINT: False, HandOver.ENSEMBLE: False,
    }  # fmt: skip


def test_weights_follow_the_formula_of_real_time_chunking():
    tie = inpaint_into(planned(np.ones((20, 1), np.float32), 0), tick=0, delay_actions=4, rows=20, horizon=50)
    assert tie is not None
    # i = 10: c = (20 − 10) / (20 − 4 + 1) = 0.5882; c·(e^c − 1)/(e − 1) = 0.27418.
    assert tie.weights[10] == pytest.approx(0.27418, abs=1e-4)


@pytest.mark.parametrize(("hz", "tick"), [(15, 105), (30, 110), (45, 115), (60, 120), (90, 130)])
def test_the_tie_is_the_same_at_every_control_rate(hz, tick):
    """Row 10 of the executing chunk is due a third of a second after its start, whatever the ticks."""
    ramp = np.arange(50, dtype=np.float32)[:, None] * np.array([1, 2], np.float32)
    executing = PlannedChunk(ramp, 100, action_ticks=round(1e9 / 30) / round(1e9 / hz))
    np.testing.assert_allclose(executing.rest(tick), ramp[10:], atol=1e-4)
    tie = inpaint_into(executing, tick, 2, 50, None)
    assert tie is not None and np.allclose(tie.target[:40], ramp[10:], atol=1e-4) and (tie.target[40:] == 0).all()
    assert (tie.weights[:2] == 1).all() and tie.weights[2] < 1 and tie.weights[39] > 0 and tie.weights[40] == 0


def test_rows_between_two_actions_lie_on_the_line_between_them():
    ramp = np.arange(5, dtype=np.float32)[:, None] ** 2
    executing = PlannedChunk(ramp, 0, action_ticks=4)
    np.testing.assert_allclose(executing.rest(5)[:, 0], [1.75, 5.25, 10.75])
    assert executing.rest(-3).tolist() == ramp.tolist()  # not begun: all of it
    assert executing.rest(16)[:, 0].tolist() == [16] and len(executing.rest(17)) == 0
