# SPDX-License-Identifier: Apache-2.0
"""The reaching policy: its dataset, its recipe in small, its evaluation, and the committed checkpoint at work."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from vla_edge.bundle import open_bundle
from vla_edge.engines.engine import EngineOptions, load_engine
from vla_edge.errors import TrainingError
from vla_edge.lerobot_data.reader import open_dataset
from vla_edge.policies.smolvla.policy import SmolVLAPolicy
from vla_edge.robot.sim.bodies.arm_body import ArmBody
from vla_edge.robot.sim.bodies.koch_body import KOCH
from vla_edge.robot.sim.bodies.so101_body import SO101
from vla_edge.robot.sim.render import rendering_fault
from vla_edge.trials.evaluate_reach import VariantResult, mcnemar, table, wilson, write_results
from vla_edge.trials.lockstep import LockstepOptions
from vla_edge.trials.reach_data import INSTRUCTIONS, ReachRecording, record_reach_dataset
from vla_edge.trials.reach_policy import Recipe, train
from vla_edge.trials.reach_task import SessionPlanner, new_arm, other_colour, reach, wanted_colour

FAULT = rendering_fault()
pytestmark = pytest.mark.skipif(FAULT is not None, reason=str(FAULT))

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
COMMITTED = pytest.mark.parametrize(("folder", "body"), [("reach-cube", KOCH), ("reach-cube-so101", SO101)])
RECIPE = Recipe(warmup_steps=2, flow_steps=2, batch=4, held_out_scenes=1)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reach") / "data"
    record_reach_dataset(folder, ReachRecording(scenes=3, observations=6, processes=1))
    return folder


def test_the_recorded_dataset_is_lerobots_and_carries_a_chunk_for_every_instruction(dataset: Path) -> None:
    with open_dataset(dataset) as data:
        assert data.info.version == "v3.0"
        assert (len(data), len(data.episodes), data.fps) == (18, 3, 10)
        assert set(data.tasks.values()) <= set(INSTRUCTIONS)
        sample = data.frame(7)
        assert sample.images["observation.images.phone"].shape == (96, 128, 3)
        colour = sample.task.split()[2]
        # The action is the first command of the expert's chunk for the instruction in force.
        assert np.array_equal(sample.values["action"], sample.values[f"expert.{colour}"][0])


def test_a_run_is_repeatable_and_leaves_lerobots_layout(dataset: Path, tmp_path: Path) -> None:
    first = train(dataset, tmp_path / "a", RECIPE)
    train(dataset, tmp_path / "b", RECIPE)
    assert np.isfinite(first["chunk_error"])
    a, b = ((tmp_path / name / "model.safetensors").read_bytes() for name in "ab")
    assert a == b
    assert len(a) < 4_000_000
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert {"config.json", "model.safetensors", "policy_preprocessor.json", "policy_postprocessor.json", "vlm"} <= names
    policy = SmolVLAPolicy.from_pretrained(tmp_path / "a")
    assert policy.config.chunk_size == 50
    assert not list(tmp_path.glob(".*")), "nothing half-written is left"


def test_a_dataset_of_another_task_or_too_small_is_refused(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="3 of them held out leave none"):
        train(dataset, tmp_path / "out", Recipe(held_out_scenes=3))
    other = Path(__file__).resolve().parents[1] / "data" / "koch_v21"
    if not other.is_dir():
        pytest.skip(f"{other.name} is not there")
    with pytest.raises(TrainingError, match="no column expert.red; record the dataset"):
        train(other, tmp_path / "out", RECIPE)


def test_mcnemar_counts_pairs_that_differ() -> None:
    assert mcnemar([True, True, False], [True, True, False]) == (0, 0, 1.0)
    lost, won, p = mcnemar([True] * 8 + [False], [False] * 8 + [True])
    assert (lost, won) == (8, 1)
    # Exact binomial: 2 · (C(9,0) + C(9,1)) / 2⁹.
    assert p == pytest.approx(2 * 10 / 512)


def test_wilsons_interval_holds_its_share_and_stays_within_zero_and_one() -> None:
    low, high = wilson(1.0, 100)
    assert low == pytest.approx(0.963, abs=0.001) and high == pytest.approx(1.0)
    low, high = wilson(0.5, 10)
    assert low < 0.5 < high


def test_results_are_written_as_a_table_and_as_json(tmp_path: Path) -> None:
    rows = [
        VariantResult("torch float32", (True, True), (False, False), 0.011, 20.0, None),
        VariantResult("gated", (True, False), (False, True), 0.02, 9.0, 0.4),
    ]
    write_results(tmp_path / "r.md", rows, {"scenes": "two"})
    text = (tmp_path / "r.md").read_text()
    assert table(rows) in text and "| gated | 50%" in text and "−1 +0, p = 1.00 | 40% |" in text
    content = json.loads((tmp_path / "r.json").read_text())
    assert content["variants"][1]["wrong"] == 0.5


@COMMITTED
def test_the_committed_policy_reaches_the_cube_it_is_told_and_no_other(folder: str, body: ArmBody) -> None:
    bundle = open_bundle(EXAMPLES / folder / "bundle")
    planner = SessionPlanner(bundle, load_engine("ort", EngineOptions(threads=1)))
    options = LockstepOptions(planner.sizes, seconds=5, replan_ticks=25)
    arm = new_arm(options, body)
    right, wrong = [], []
    for seed in range(90_000, 90_008):
        right.append(reach(arm, planner, seed, wanted_colour(seed), options).reached(wanted_colour(seed)))
        wrong.append(reach(arm, planner, seed, other_colour(seed), options).reached(wanted_colour(seed)))
    arm.close()
    # Measured over many scenes: at least 90 % and at most 10 %. A policy that does not listen reaches 1 in 3: that it
    # passes by luck has a probability below 0.02 on the first line alone.
    assert sum(right) >= 6
    assert sum(wrong) <= 2


@COMMITTED
def test_the_committed_files_are_small_and_belong_together(folder: str, body: ArmBody) -> None:
    example = EXAMPLES / folder
    assert sum(file.stat().st_size for file in (example / "checkpoint").rglob("*")) <= 4_000_000
    assert sum(file.stat().st_size for file in (example / "bundle").rglob("*")) <= 6_000_000
    policy = SmolVLAPolicy.from_pretrained(example / "checkpoint")
    bundle = open_bundle(example / "bundle")
    bundle.verify()
    assert policy.digest in json.dumps(dict(bundle.manifest.checkpoint))
    assert bundle.manifest.joint_units == "degrees"
