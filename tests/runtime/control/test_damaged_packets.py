# SPDX-License-Identifier: Apache-2.0
"""Control over protocol 0, whose packets have a checksum of one byte, with one status in a hundred damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.runtime.control.control_rig import rig

from vla_edge.robot.servo_arm import ArmResult

LONG = pytest.param(54_000, True, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])
"""Ten minutes at 90 Hz."""


@pytest.mark.parametrize(("moving", "in_time"), [(200, False), LONG])
def test_a_damaged_packet_is_never_acted_on(golden_bundle: Path, moving: int, in_time: bool) -> None:
    """Every reading that was taken is one that the servos gave; the arm goes on over those that were not. in_time: no
    tick is missed."""
    with rig(golden_bundle, "--hz", "90", arm="so101", emulator=("--seed", "5")) as made:
        made.emulator.event("rate corrupt 0.01")
        made.move(moving)
        assert made.stop() == ""
        ticks, status = made.ticks(), made.status()
        made.given(ticks)
    lost = [tick for tick in ticks if tick["read_result"] == ArmResult.CORRUPT]
    assert len(lost) > moving // 100, "the damage was there"
    assert {tick["reason"] for tick in ticks if tick["state"] == "fault"} <= {"watchdog"}, (
        "only a gap of the machine is one"
    )
    if in_time:
        made.judge_in_time(status)
