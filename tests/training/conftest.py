# SPDX-License-Identifier: Apache-2.0
"""The world that most tests of training read, written once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.training.training_world import World, write_data, write_policy


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """policy/ (bfloat16 mixed, as published) and float/, both with chunks of four actions; data/ (6 episodes of 6
    frames), more/ (3 other ones). Nobody writes into it."""
    root = tmp_path_factory.mktemp("world")
    write_policy(root / "policy", dtype="bfloat16", chunk_size=4, n_action_steps=4)
    write_policy(root / "float", seed=1, chunk_size=4, n_action_steps=4)
    write_data(root / "data", World(episodes=6, length=6))
    write_data(root / "more", World(episodes=3, length=6, seed=1))
    return root
