# SPDX-License-Identifier: Apache-2.0
"""A test says the same every time, on any machine: it draws the same numbers, and waits for events, not for a while."""

from __future__ import annotations

import ast
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

TESTS = Path(__file__).parent
LEAST_S = 240
"""A wait that is given up sooner fails on a machine that is busy with something else."""
WAITS = {"join", "settimeout"}
"""Methods whose only number is how long to wait. `Event.wait` is a pause in a loop as well."""


@pytest.mark.parametrize("turn", range(2))
def test_every_test_draws_the_same_numbers(turn: int) -> None:
    torch = pytest.importorskip("torch")
    assert random.random() == pytest.approx(0.8444218515250481)
    assert np.random.rand() == pytest.approx(0.5488135039273248)
    assert float(torch.rand(1)) == pytest.approx(0.4962565899)


def short_waits(tree: ast.AST) -> Iterator[tuple[int, float]]:
    """(line, seconds) of every wait with a limit that a busy machine misses."""
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call):
            continue
        given = [word.value for word in call.keywords if word.arg in ("timeout", "timeout_s")]
        given += (
            call.args
            if isinstance(call.func, ast.Attribute) and call.func.attr in WAITS and len(call.args) == 1
            else []
        )
        for value in given:
            if isinstance(value, ast.Constant) and isinstance(value.value, (int, float)) and value.value < LEAST_S:
                yield call.lineno, value.value


def test_no_test_gives_a_wait_up_that_a_busy_machine_needs() -> None:
    found = [
        f"{path.relative_to(TESTS)}:{line} waits {seconds} s"
        for path in sorted(TESTS.rglob("*.py"))
        for line, seconds in short_waits(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not found
    assert list(short_waits(ast.parse("thread.join(5)\nrun(words, timeout=20)\nthread.join()"))) == [(1, 5), (2, 20)]
