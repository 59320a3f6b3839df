# SPDX-License-Identifier: Apache-2.0
"""`vla-train plan`: what it computes is what a step allocates, and follows batch, precision and cache."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from vla_edge.policies.smolvla.backbone import backbone_from_json
from vla_edge.policies.smolvla.config import config_from_json
from vla_edge.training.command import main
from vla_edge.training.step_plan import (
    CARDS_GB,
    Case,
    PlannedPolicy,
    largest_batch,
    line_through,
    measured,
    planned_policy,
    step_cost,
)

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.random_policy import FULL, RandomPolicy, _config_json
from tests.training.training_world import one_thread, write_policy

one_thread()


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_policy(tmp_path_factory.mktemp("plan") / "policy", chunk_size=4, n_action_steps=4)


def test_what_is_counted_for_the_backward_pass_is_what_autograd_keeps(policy: Path) -> None:
    planned = planned_policy(policy)
    small, large = (step_cost(planned, Case("float32", "none"), size) for size in (8, 16))
    kept: dict[int, torch.UntypedStorage] = {}
    sizes = []
    for batch in (8, 16):
        model = planned.model()
        own = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
        kept.clear()

        def save(tensor: torch.Tensor, own: set[int] = own) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
            planned.backward(model, planned.inputs(batch, "none"), "float32")
        sizes.append(sum(storage.nbytes() for storage in kept.values()))
    grown = large.memory - small.memory
    assert 1.0 <= grown / (sizes[1] - sizes[0]) < 3.0, "inputs and the largest results come on top"


def test_memory_and_products_grow_with_the_batch_and_shrink_with_a_cache(policy: Path) -> None:
    planned = planned_policy(policy)
    cost = {cache: step_cost(planned, Case("float32", cache), 8) for cache in ("none", "vision", "prefix")}
    assert cost["none"].flops > cost["vision"].flops > cost["prefix"].flops
    assert cost["none"].memory > cost["vision"].memory
    assert cost["none"].operations > cost["prefix"].operations
    larger = step_cost(planned, Case("float32", "none"), 16)
    assert larger.memory > cost["none"].memory and larger.flops == pytest.approx(2 * cost["none"].flops, rel=0.05)
    assert line_through(cost["none"], larger, 16) == larger
    fits = [largest_batch(cost["none"], larger, size) for size in CARDS_GB]
    assert fits == sorted(fits) and largest_batch(cost["none"], larger, 0.1) == 0
    assert step_cost(planned, Case("bf16", "none"), 8).seconds("bf16") > 0


def test_the_table_of_the_page_is_what_the_command_computes_at_full_size() -> None:
    """One row, the cheapest; pictures of any size are scaled to 512 there."""
    config = config_from_json(_config_json(RandomPolicy(size="full")), "full")
    policy = PlannedPolicy(config, backbone_from_json(FULL["backbone"], Path("full")))
    small, large = (step_cost(policy, Case("float32", "prefix"), size) for size in (8, 16))
    costs = [line_through(small, large, size) for size in (8, 32, 64)]
    cells = [f"{cost.memory / 1e9:.1f} GB, {cost.seconds('float32'):.2f} s" for cost in costs]
    cells += [str(largest_batch(small, large, size)) for size in CARDS_GB]
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    assert f"| float32, `--cache-prefix` | {' | '.join(cells)} |" in page


def test_a_measured_step_is_a_real_one(policy: Path) -> None:
    seconds, memory = measured((planned_policy(policy), Case("float32", "prefix"), 2, 1))
    assert seconds > 0 and memory > 2**20


def test_the_command_prints_a_row_for_each_way_and_says_what_is_computed(
    policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "--checkpoint", str(policy), "--batch", "2", "--json"]) == 0
    captured = capsys.readouterr()
    rows = json.loads(captured.out)["rows"]
    assert len(rows) == 6 and "computed" in captured.err
    assert {row["cache"] for row in rows} == {"none", "vision", "prefix"} and rows[0]["fits"]["24"] > 0
