# SPDX-License-Identifier: Apache-2.0
"""R1 to R15 over protocol 0, in their short forms on one SO-101 that is started once; judged as the Koch's.

R3 and R9 to R13 of the bus alone stand for both protocols in tests/robot/test_bus_faults.py, R6 knows no bus
(schedule_test.c), R14 is the guardian's (test_guardian.py); the long forms stand beside the Koch's.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.runtime.control.control_rig import Rig, busy_cpu, rig
from tests.runtime.control.test_control_endurance import endure
from tests.runtime.control.test_control_process import (
    adversary,
    an_alert_stops_all,
    an_unplugged_adapter,
    check_outages,
    malformed,
    no_tick_was_made_up,
    without_new_chunks,
)

from vla_edge.runtime.control.recover import recover_running

pytest.importorskip("vla_edge._core")

HZ = 90
STANDS = (2048, 1200, 2800, 2048, 1800, 1500)


@pytest.fixture(scope="module")
def shared(paced_bundle: Path) -> Iterator[Rig]:
    words = ("--seed", "5", "--positions", *map(str, STANDS))
    with rig(paced_bundle, "--hz", str(HZ), arm="so101", emulator=words) as made:
        yield made


@pytest.fixture
def made(shared: Rig) -> Rig:
    """Armed, whatever the test before has left."""
    if shared.status()["reason"] == "alert":
        recover_running(shared.folder)
    shared.arm()
    return shared


def test_the_first_goal_is_where_the_arm_is_and_precedes_torque(made: Rig) -> None:
    """R9."""
    first = made.emulator.entries("goal", "torque")[0]
    assert first["kind"] == "goal" and list(first["goals"].values()) == list(STANDS)


def test_adversarial_chunks_never_exceed_a_limit_on_the_bus(made: Rig) -> None:
    """R8, from the first goal on."""
    adversary(made, HZ, goals=200)


@pytest.mark.parametrize("bad", ["nan", "huge", "joint missing"])
def test_a_malformed_chunk_stops_the_arm_within_a_tick(made: Rig, bad: str) -> None:
    """R7."""
    malformed(made, bad)


def test_without_new_chunks_goals_slow_down_at_once_and_the_hold_latches(made: Rig) -> None:
    """R5 and R15."""
    without_new_chunks(made, 1)


def test_a_bus_with_every_fault_gives_no_stale_value(made: Rig) -> None:
    """R10, beside a two-thread matrix product (R1)."""
    with busy_cpu():
        endure(made, 150)


def test_lost_readings_hold_and_resume_or_latch(made: Rig) -> None:
    """R11. No servo stops by itself here: after a latched loss the arm is where its goals are."""
    since = made.move(10)
    made.emulator.event("hang 60")
    made.wait(lambda status: status["reason"] == "reads_lost" and status["latched"])
    made.emulator.event("hang 0")
    status = made.pass_ticks(3)
    assert (status["state"], status["reason"]) == ("hold", "reads_lost")
    assert check_outages(made.ticks(since["tick"] - 1), status["period_ns"]) >= 1
    made.arm()
    status = made.move(20)
    assert np.abs(np.subtract(status["present"], status["goals"])).max() <= made.description.limits.tracking + 10


def test_an_alert_on_one_servo_stops_all_and_is_named(made: Rig) -> None:
    """R12."""
    made.move(10)
    an_alert_stops_all(made)


def test_the_end_no_tick_was_made_up_and_an_unplugged_adapter_is_noticed(made: Rig) -> None:
    """R13, and R1, R2, R4 over all of the above. Ends the arm."""
    made.move(8)
    an_unplugged_adapter(made)
    no_tick_was_made_up(made)
