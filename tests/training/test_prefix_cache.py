# SPDX-License-Identifier: Apache-2.0
"""Training on kept keys and values equals training on pictures: exactly where batches have one shape, within rounding
elsewhere; for the policy, CRaFT's anchors and the delta expert, and over a resume."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vla_edge.errors import ConfigError
from vla_edge.policies.smolvla.policy import SmolVLAPolicy
from vla_edge.training.craft.anchors import AnchorPlan, build_anchors
from vla_edge.training.loop_inputs import assemble
from vla_edge.training.run_config import (
    AugmentConfig,
    CraftConfig,
    DeltaConfig,
    FreezeConfig,
    LoraConfig,
    OptimizerConfig,
    TaskData,
    TrainConfig,
)
from vla_edge.training.run_files import read_metrics
from vla_edge.training.runs import fine_tune

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.training.training_world import (
    MODEL,
    World,
    check_resume_with_and_without,
    one_thread,
    two_steps,
    write_data,
    write_policy,
)

one_thread()


@pytest.fixture(scope="module")
def longest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy/ that pads instructions to the batch's longest, data/ and words/ in which they differ."""
    root = tmp_path_factory.mktemp("prefixes")
    write_policy(root / "policy", pad_language_to="longest", chunk_size=4, n_action_steps=4)
    write_data(root / "data", World(episodes=4, length=5))
    write_data(root / "words", World(episodes=4, length=5, named=("red", "blue"), text="reach for the {} one"))
    return root


def config(world: Path, out: Path, **changes: Any) -> TrainConfig:
    data = (TaskData("data", str(world / "data"), held_out=(3,)),)
    return two_steps(world, out, **{"steps": 6, "save_every": 3, "data": data, **changes})


def losses(run: Path, name: str = "loss") -> list[float]:
    return [row[name] for row in read_metrics(run) if name in row]


def model_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the frozen model ran")

    monkeypatch.setattr("vla_edge.policies.smolvla.flow.FlowMatching.run_prefix", refuse)


CASES: dict[str, dict[str, Any]] = {
    "policy": {"validate_every": 3, "accumulation": 2},
    "delta": {"kind": "delta", "validate_every": 3},
    "distill": {"kind": "distill", "num_steps": 2, "validate_every": 3},
    "delta without head": {"kind": "delta", "delta_target": "noise", "delta": DeltaConfig(use_cls_head=False)},
}


@pytest.mark.parametrize("case", CASES)
def test_cached_training_equals_training_on_pictures_bit_for_bit_and_runs_no_frozen_model_the_second_time(
    world, tmp_path, monkeypatch, case
):
    changes, cache = CASES[case], str(tmp_path / "scenes")
    fine_tune(config(world, tmp_path / "plain", **changes))
    fine_tune(config(world, tmp_path / "cached", cache_prefix=cache, **changes))
    assert losses(tmp_path / "plain") == losses(tmp_path / "cached")
    assert losses(tmp_path / "plain", "validation") == losses(tmp_path / "cached", "validation")
    assert (tmp_path / "plain" / MODEL).read_bytes() == (tmp_path / "cached" / MODEL).read_bytes()
    model_forbidden(monkeypatch)
    fine_tune(config(world, tmp_path / "again", cache_prefix=cache, **changes))
    assert losses(tmp_path / "plain") == losses(tmp_path / "again")


def test_anchors_of_craft_are_kept_too(world, tmp_path, monkeypatch):
    plan = AnchorPlan((TaskData("data", str(world / "data")),), 8)
    build_anchors(SmolVLAPolicy.from_pretrained(world / "policy"), plan, tmp_path / "anchors", torch.device("cpu"))
    craft = CraftConfig(anchors=str(tmp_path / "anchors"), every=1, anchor_batch=4)
    changes, cache = {"statistics": "checkpoint", "craft": craft}, str(tmp_path / "scenes")
    fine_tune(config(world, tmp_path / "plain", **changes))
    fine_tune(config(world, tmp_path / "cached", cache_prefix=cache, **changes))
    assert losses(tmp_path / "plain", "retention_loss") == losses(tmp_path / "cached", "retention_loss")
    assert losses(tmp_path / "plain") == losses(tmp_path / "cached")
    model_forbidden(monkeypatch)
    fine_tune(config(world, tmp_path / "again", cache_prefix=cache, **changes))
    assert losses(tmp_path / "plain") == losses(tmp_path / "again")


def test_where_batches_differ_in_length_fifty_steps_differ_by_rounding_alone(world, longest, tmp_path):
    both = (TaskData("data", str(longest / "data")), TaskData("words", str(longest / "words")))
    changes: dict[str, Any] = {"policy": str(longest / "policy"), "data": both, "steps": 50, "save": False}
    changes["optimizer"] = OptimizerConfig()  # at a higher rate AdamW's first steps make more of the rounding
    for name, cache in (("plain", ""), ("cached", str(tmp_path / "scenes"))):
        fine_tune(config(world, tmp_path / name, cache_prefix=cache, **changes))
    plain, cached = np.array(losses(tmp_path / "plain")), np.array(losses(tmp_path / "cached"))
    # Seen: 8.4e-7 of the loss; the limit leaves room for another machine's kernels.
    assert len(plain) == 50 and np.abs(cached / plain - 1).max() <= 2e-6


def test_a_cached_run_resumes_bit_for_bit_with_and_without_its_cache(world, tmp_path):
    check_resume_with_and_without(partial(config, world), "cache_prefix", tmp_path)


def test_another_instruction_model_or_size_has_its_own_scenes_and_the_size_is_told(world, longest, tmp_path):
    write_policy(tmp_path / "policy", seed=5, dtype="bfloat16", chunk_size=4, n_action_steps=4)
    cache = str(tmp_path / "scenes")
    words = (TaskData("words", str(longest / "words")),)
    setups = [
        assemble(config(world, tmp_path / "x", cache_prefix=cache, **changes))
        for changes in (
            {},
            {"policy": str(tmp_path / "policy")},
            {"image_size": (32, 32)},
            {"cache_type": "int8"},
            {"data": words},
        )
    ]
    assert len({setup.training[0].scenes.store.folder for setup in setups if setup.training[0].scenes}) == len(setups)
    assert any("20 scenes are left to compute" in note for note in setups[-1].notes)


@pytest.mark.parametrize(("kind", "limit"), [("bfloat16", 0.02), ("int8", 0.05)])
def test_smaller_kinds_change_the_loss_by_little(world, tmp_path, kind, limit):
    fine_tune(config(world, tmp_path / "plain"))
    fine_tune(config(world, tmp_path / "small", cache_prefix=str(tmp_path / "scenes"), cache_type=kind))
    plain, small = np.array(losses(tmp_path / "plain")), np.array(losses(tmp_path / "small"))
    worst = np.abs(small / plain - 1).max()
    print(f"{kind}: {worst:.1e}")
    assert 0 < worst < limit


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"augment": AugmentConfig(most=1)}, "--augment changes pictures"),
        ({"freeze": FreezeConfig(vision=True, expert_only=False)}, "--expert-only"),
        ({"lora": LoraConfig(rank=2)}, "without LoRA"),
        ({"cache_vision": "tokens"}, "give one of them"),
    ],
)
def test_what_a_cache_cannot_be_is_refused(world, tmp_path, changes, told):
    with pytest.raises(ConfigError, match=told):
        assemble(config(world, tmp_path / "run", cache_prefix=str(tmp_path / "scenes"), **changes))
