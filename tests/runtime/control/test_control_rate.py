# SPDX-License-Identifier: Apache-2.0
"""The control rate: chosen from how long the servos take to answer, refused where none fits."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest

from vla_edge.errors import BusError, ConfigError
from vla_edge.runtime.control.control_settings import (
    PAUSE_S,
    READINGS,
    ROUNDS,
    ControlRate,
    candidates,
    choose_rate,
    measured,
    period_ns_of,
)


def answer_s(hz: float) -> float:
    """As `control_answer_ns`: thirteen sixteenths of half a tick, or of 8 ms."""
    return min(0.008, 0.5 / hz) * 13 / 16


def times(usual_s: float, late: int = 0, late_s: float = 0.02) -> list[float]:
    return [usual_s] * (READINGS - late) + [late_s] * late


def test_the_c_loop_gives_the_servos_the_time_that_is_assumed_here() -> None:
    core = pytest.importorskip("vla_edge._core")
    for hz in (6, 30, 45, 90, 100):
        assert core.control_answer_ns(period_ns_of(hz)) / 1e9 == pytest.approx(answer_s(hz), rel=1e-6)


@pytest.mark.parametrize(
    ("usual_s", "late", "fps", "hz"),
    [
        (0.002, 0, 30.0, 90),
        (0.002, 3, 30.0, 90),
        (0.0025, 0, 30.0, 45),  # at 90 Hz a deaf servo would never be noticed
        (0.0032, 3, 30.0, 45),
        (0.002, 4, 30.0, None),  # more than one in a hundred comes too late for any rate
        (0.0045, 0, 30.0, 90),  # no rate has time for a second question
        (0.0046, 0, 30.0, 45),
        (0.0064, 3, 50.0, 45),
        (0.0066, 0, 30.0, None),
        (0.002, 0, None, 30),
        (0.006, 0, None, 30),
        (0.006, 0, 5.0, 45),
    ],
)
def test_the_fastest_rate_whose_ticks_leave_the_servos_their_time_is_taken(
    usual_s: float, late: int, fps: float | None, hz: float | None
) -> None:
    if hz is None:
        remedy = "other programs hold these up" if usual_s < 0.003 else "latency timer to 1 ms"
        with pytest.raises(BusError, match=remedy):
            choose_rate(times(usual_s, late), None, fps, answer_s)
    else:
        assert choose_rate(times(usual_s, late), None, fps, answer_s).hz == hz


def test_the_datas_own_rate_is_the_last_to_be_tried_within_what_control_can_do() -> None:
    assert candidates(None, 30.0) == (90.0, 45.0, 30.0) and candidates(None, 20.0)[-1] == 20.0
    assert candidates(None, 2.0)[-1] == 6.0 and candidates(None, 500.0)[-1] == 100.0
    assert candidates(25.0, 30.0) == (25.0,) and candidates(None, None) == (30.0,)


def test_a_rate_that_was_asked_for_is_kept_or_refused_with_the_way_out() -> None:
    assert choose_rate(times(0.002), 25.0, 30.0, answer_s).hz == 25
    with pytest.raises(BusError) as refused:  # a USB adapter with 2 ms in front of each reading, at 100 Hz
        choose_rate(times(0.0035, 72, 0.0055), 100.0, 30.0, answer_s)
    assert str(refused.value) == (
        "reading the servos takes 3.5 ms: 72 of 300 readings took longer than the 4.1 ms that 100 Hz leave; leave "
        "--hz out or give a smaller one, set the adapter's latency timer to 1 ms or use an adapter without one "
        "(docs/robot.md)"
    )
    with pytest.raises(BusError, match=r"that 45 Hz leave; set the adapter's"):
        choose_rate(times(0.02), 45.0, 30.0, answer_s)
    with pytest.raises(ConfigError, match="--hz is 200"):
        period_ns_of(200)


def test_periods_and_the_sentence() -> None:
    rate = choose_rate(times(0.0019, 3, 0.0026), None, 30.0, answer_s)
    assert (rate.period_ns, rate.action_ns) == (11_111_111, 33_333_333)
    assert rate.sentence() == (
        "control at 90 Hz (the servos answer in 1.9 ms, p99 2.6), the policy's actions at 30 a second"
    )
    unknown = ControlRate(50.0, None)
    assert unknown.action_ns == unknown.period_ns == 20_000_000
    assert "each control tick takes one" in unknown.sentence() and "--fps" in unknown.sentence()


def test_a_busy_spell_is_measured_again_and_a_slow_bus_is_soon_known() -> None:
    spell: Iterator[float] = iter([*[0.002] * 90, *[0.03] * 4, *[0.002] * 400])
    slept: list[float] = []
    assert measured(lambda: next(spell), 0.0065, slept.append) == [0.002] * READINGS and slept == [PAUSE_S]
    asked = 0

    def slow() -> float:
        nonlocal asked
        asked += 1
        return math.inf if asked % 2 else 0.02

    found = measured(slow, 0.0065, slept.append)
    assert asked == ROUNDS * 4 and len(found) == 4
    with pytest.raises(BusError):
        choose_rate(found, None, 30.0, answer_s)
