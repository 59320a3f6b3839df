# SPDX-License-Identifier: Apache-2.0
"""What the bench of fewer flow steps makes of its episodes."""

from __future__ import annotations

import numpy as np
import pytest

from vla_edge.benchmarks.flow.few_steps import chunk_error, page
from vla_edge.benchmarks.handover_motion import HZ, TURN_TICK, Motion, reach_row


def motion(arrives_s: float, off_m: float, tremble_deg: float) -> Motion:
    """A tip that jumps near its target after so long, and a shoulder that trembles there."""
    tips = np.full((TURN_TICK, 3), 0.2)
    tips[round(arrives_s * HZ) :] = (off_m, 0, 0)
    positions = np.zeros((TURN_TICK, 6))
    positions[1::2, 1] = tremble_deg
    return Motion(positions, np.zeros((TURN_TICK, 6)), tips, np.zeros(3), TURN_TICK, TURN_TICK, 2.0, 0.0)


def test_a_shorter_chunk_is_held_against_the_first_actions_of_the_whole_one() -> None:
    whole = [np.arange(12, dtype=np.float32).reshape(4, 3)]
    assert chunk_error([whole[0][:2] + 1], whole) == 1
    assert chunk_error([whole[0] - 2], whole) == 2


def test_a_row_tells_success_error_settling_and_tremble_and_is_compared_scene_by_scene() -> None:
    ten = [motion(1.0, 0.01, 0.5), motion(2.0, 0.02, 1.0), motion(1.0, 0.05, 1.5)]
    few = [motion(0.5, 0.01, 2.0), motion(5.0, 0.05, 1.0), motion(1.5, 0.01, 1.0)]
    first, row = reach_row(ten, None), reach_row(few, ten)
    assert "pairs" not in first and first["success"] == pytest.approx(2 / 3)
    assert first["error_cm"] == pytest.approx(8 / 3) and first["settling_s_p50"] == pytest.approx(1.5)
    assert first["tremble_deg_p50"] == 1.0 and first["tremble_deg_p90"] == pytest.approx(1.4)
    assert row["settling_s_p50"] == pytest.approx(1.0) and row["pairs"][:2] == (1, 1)
    table = page({"10 steps": {**first, "chunk_error": 0.0}, "1 steps, plain": {**row, "chunk_error": 0.9}})
    assert "| 1 steps, plain | 0.67 | 2.33 | 1.00 |" in table
