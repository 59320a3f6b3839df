# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of training: quotas, schedules, CRaFT, stages, transfer, errors, faults. No network is run."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_edge.errors import ConfigError, TrainingError
from vla_edge.fields import build, to_json
from vla_edge.training.craft.conflict_projection import (
    CraftConfig,
    combine,
    epsilon_at,
    next_multiplier,
    retention_loss,
)
from vla_edge.training.evaluation.cls_report import auroc
from vla_edge.training.evaluation.prediction_errors import baselines, chunk_errors
from vla_edge.training.objective import lr_factor
from vla_edge.training.run_config import ScheduleConfig, TaskData, TrainConfig
from vla_edge.training.run_files import Status, append_metrics, cut_metrics, describe, read_metrics, write_status
from vla_edge.training.sampler import QuotaSampler, SamplerState, Source, quota
from vla_edge.training.sequential.phases import hold_out, read_stages
from vla_edge.training.sequential.transfer import transfer_from_rows

KUAVO_LAST = [Source(name, 500, weight) for name, weight in (("a", 0.1), ("b", 0.1), ("c", 0.2), ("d", 0.6))]


# ---- sampler


@settings(max_examples=60)
@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=5), st.integers(1, 64))
def test_every_batch_has_each_share_rounded_down_or_up_and_running_totals_stay_exact(weights, batch_size):
    sampler = QuotaSampler([Source(str(i), 9, w) for i, w in enumerate(weights)], batch_size, 0)
    state = sampler.start()
    for _ in range(40):
        counts = quota(sampler._shares, batch_size, state)
        assert sum(counts) == batch_size
        assert all(count in (int(share), int(share) + 1) for count, share in zip(counts, sampler._shares))
        state = sampler.advance(state)
    for drawn, share in zip(state.drawn, sampler._shares):
        assert abs(Fraction(drawn) - share * state.batches) < 2  # two frames: what greedy rounding is bounded by here


def test_kuavos_last_stage_takes_6_or_7_6_or_7_12_or_13_38_or_39_of_64():
    sampler = QuotaSampler(KUAVO_LAST, 64, 3)
    state = sampler.start()
    for _ in range(10):
        draw = sampler.draw(state)
        counts = [sum(source == i for source, _ in draw.picks) for i in range(4)]
        assert [counts[0] in (6, 7), counts[1] in (6, 7), counts[2] in (12, 13), counts[3] in (38, 39)] == [True] * 4
        state = draw.after
    assert state.drawn == (64, 64, 128, 384)  # ten batches are exact


def test_a_pass_draws_every_frame_once_and_the_next_pass_in_another_order():
    sampler = QuotaSampler([Source("a", 12, 1.0)], 4, 7)
    state, frames = sampler.start(), []
    for _ in range(6):
        draw = sampler.draw(state)
        frames += [frame for _, frame in draw.picks]
        state = draw.after
    assert sorted(frames[:12]) == sorted(frames[12:]) == list(range(12))
    assert frames[:12] != frames[12:]


def test_a_restored_sampler_draws_what_the_uninterrupted_one_draws():
    one, other = (QuotaSampler(KUAVO_LAST, 16, 5) for _ in range(2))
    state = one.start()
    for _ in range(37):
        state = one.draw(state).after
    restored = other.restore(json.loads(json.dumps(one.save(state))))
    assert restored == state and other.draw(restored) == one.draw(state)
    assert one.draw(SamplerState(37, state.drawn)) == one.draw(state)


def test_a_sampler_refuses_a_state_of_other_data_and_empty_or_weightless_sources():
    saved = QuotaSampler(KUAVO_LAST, 16, 5).save(SamplerState(0, (0, 0, 0, 0)))
    with pytest.raises(TrainingError, match="batch_size was 16 and is now 8"):
        QuotaSampler(KUAVO_LAST, 8, 5).restore(saved)
    with pytest.raises(ConfigError, match="no frames"):
        QuotaSampler([Source("empty", 0, 1.0)], 4, 0)
    with pytest.raises(ConfigError, match="weight"):
        QuotaSampler([Source("a", 4, 0.0)], 4, 0)


# ---- schedule


def test_learning_rate_warms_up_then_falls_to_its_lowest_and_stays():
    schedule = ScheduleConfig(warmup_steps=1000, decay_steps=30_000, decay_lr=2.5e-6)
    factor = [lr_factor(step, schedule, 1e-4, 50_000) for step in (0, 500, 1000, 30_000, 49_999)]
    # LeRobot's cosine_decay_with_warmup: starts at 1/1001, its cosine is already under way when warm-up ends
    assert factor[0] == pytest.approx(1 / 1001) and factor[1] == pytest.approx(0.5, abs=1e-3)
    assert factor[2] == pytest.approx(0.025 + 0.975 * 0.5 * (1 + np.cos(np.pi / 30)))
    assert factor[3] == factor[4] == pytest.approx(0.025)


def test_a_short_run_scales_warm_up_and_decay_to_its_length():
    schedule = ScheduleConfig(1000, 30_000, 2.5e-6)
    assert lr_factor(300, schedule, 1e-4, 300) == pytest.approx(0.025)
    assert lr_factor(0, schedule, 1e-4, 300) == pytest.approx(1 / 11)  # ten warm-up steps


# ---- CRaFT


def vectors(*values: float) -> list[torch.Tensor | None]:
    return [torch.tensor(list(values))]


def numbers(gradient: torch.Tensor | None) -> list[float]:
    assert gradient is not None
    return gradient.tolist()


def test_a_conflicting_task_gradient_loses_exactly_its_part_against_retention():
    task, keep = vectors(1.0, -1.0), vectors(0.0, 2.0)
    merged = combine(task, keep, 0.0, CraftConfig())
    assert merged.conflict and merged.cosine == pytest.approx(-(0.5**0.5))
    assert numbers(merged.gradients[0]) == [1.0, 0.0]  # g - (<g,r>/|r|^2) r, exact in these numbers


def test_the_threshold_is_a_cosine_not_a_dot_product():
    task, keep = vectors(100.0, -5.0), vectors(0.0, 100.0)  # dot -500, cosine -0.05
    assert not combine(task, keep, 1.0, CraftConfig()).conflict
    assert combine(task, keep, 1.0, CraftConfig(conflict_cosine=-0.04)).conflict


@pytest.mark.parametrize(
    ("how", "expected"), [("weighted", [1.0, 3.0]), ("equal", [0.5, 1.0]), ("task_priority", [1.0, 2.0])]
)
def test_the_three_merges(how, expected):
    merged = combine(vectors(1.0, 1.0), vectors(0.0, 1.0), 2.0, CraftConfig(merge=how))
    assert numbers(merged.gradients[0]) == expected


def test_a_missing_gradient_on_one_side_counts_as_zero():
    merged = combine([torch.ones(2), None, None], [None, torch.ones(2), None], 0.5, CraftConfig())
    assert merged.cosine == 0.0 and not merged.conflict
    assert (
        numbers(merged.gradients[0]) == [1.0, 1.0]
        and numbers(merged.gradients[1]) == [0.5, 0.5]
        and merged.gradients[2] is None
    )


def test_lambda_rises_above_epsilon_falls_below_and_is_clipped():
    config = CraftConfig()
    assert next_multiplier(1.0, 2.0, 1.0, config) == pytest.approx(1.01)
    assert next_multiplier(0.001, 0.0, 1.0, config) == 0.0
    assert next_multiplier(9.999, 100.0, 0.1, config) == 10.0
    assert [epsilon_at(step, 101, config) for step in (0, 50, 100)] == pytest.approx([1.0, 0.55, 0.1])


@pytest.mark.parametrize("kind", ["mse", "cosine", "l1"])
def test_identical_inputs_have_retention_loss_zero_and_others_do_not(kind):
    values = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0))
    assert retention_loss(values, values.clone(), kind).item() == 0.0
    assert retention_loss(values, -values, kind).item() > 0.5
    assert retention_loss(values.bfloat16(), values.bfloat16(), kind).dtype == torch.float32


def test_cosine_loss_is_one_minus_the_cosine():
    a, b = (
        torch.randn(6, 20, generator=torch.Generator().manual_seed(1)),
        torch.randn(6, 20, generator=torch.Generator().manual_seed(2)),
    )
    expected = (1 - torch.nn.functional.cosine_similarity(a, b)).mean()
    assert retention_loss(a, b, "cosine").item() == pytest.approx(expected.item(), abs=1e-6)  # float32 rounding


# ---- stages, transfer


def test_the_shipped_kuavo_stages_are_those_of_the_specification():
    plan = read_stages("kuavo")
    assert [stage.mix for stage in plan.stages] == [(1.0,), (0.2, 0.8), (0.1, 0.2, 0.7), (0.1, 0.1, 0.2, 0.6)]
    assert [stage.lr for stage in plan.stages] == [5e-5, 3.5e-5, 2.5e-5, 2e-5]
    assert [(s.epochs, s.warmup_steps, s.decay_steps) for s in plan.stages] == [
        (100, 1500, 25_000),
        (25, 800, 20_000),
        (30, 500, 25_000),
        (35, 300, 30_000),
    ]
    optimizer = plan.shared.optimizer
    assert (optimizer.betas, optimizer.eps, optimizer.weight_decay, optimizer.grad_clip_norm) == (
        (0.9, 0.999),
        1e-8,
        5e-7,
        1.0,
    )
    assert (plan.policy.chunk_size, plan.policy.n_action_steps, plan.policy.num_steps, plan.shared.batch_size) == (
        50,
        8,
        10,
        64,
    )
    assert (
        plan.stages[1].steps(frames=6400, batch_size=64) == 25 * 125
    )  # one epoch passes the own task's 6400 frames at 0.8 of 64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("mix: [0.2, 0.7]", "shares sum to 1"),
        ("mix: [0.2, 0.2, 0.6]", "mixes 3 tasks, there are 2"),
        ("mix: [0.2, 0.8], speed: 3", "unknown field .*speed"),
        ("mix: [0.2, fast]", "must be a number"),
    ],
)
def test_a_wrong_stage_file_is_named_by_stage_and_field(tmp_path: Path, change, message):
    file = tmp_path / "stages.yaml"
    common = "lr: 1e-4, epochs: 1, warmup_steps: 0, decay_steps: 1"
    tasks = "\n".join(f"  - {{name: {name}, dataset: {name}, action_dim: 2, state_dim: 2}}" for name in "ab")
    file.write_text(
        f"name: two\ntasks:\n{tasks}\nstages:\n  - {{name: a, mix: [1], {common}}}\n  - {{name: b, {change}, "
        f"{common}}}\n"
    )
    with pytest.raises(ConfigError, match=message):
        read_stages(file)


def test_held_out_episodes_are_fixed_by_the_seed_and_never_all():
    assert hold_out(50, 0.1, 3) == hold_out(50, 0.1, 3) != hold_out(50, 0.1, 4)
    assert len(hold_out(50, 0.1, 3)) == 5 and len(hold_out(2, 0.9, 0)) == 1 and hold_out(1, 0.5, 0) == ()


def test_forgetting_is_relative_to_each_tasks_own_best():
    transfer = transfer_from_rows(["s1", "s2"], ["a", "b"], [{"a": 0.2, "b": 0.9}, {"a": 0.5, "b": 0.3}])
    assert transfer.forgetting() == pytest.approx({"a": 1.5, "b": 0.0}) and transfer.mean_forgetting() == pytest.approx(
        1.5
    )
    assert "+150.0%" in transfer.markdown()
    half = transfer_from_rows(["s1", "s2"], ["a", "b"], [{"a": 0.2}])
    assert half.to_json()["losses"] == [[0.2, None], [None, None]] and half.mean_forgetting() == 0.0


# ---- errors of predictions, AUROC


def test_prediction_errors_count_only_steps_inside_the_episode_and_by_horizon():
    recorded = np.zeros((2, 4, 2), np.float32)
    predicted = recorded.copy()
    predicted[:, 0] = [1.0, 3.0]
    predicted[:, 3] = 100.0
    is_pad = np.array([[False, False, False, True]] * 2)
    errors = chunk_errors(predicted, recorded, is_pad, executed=2)
    assert errors["first step"].mae.tolist() == [1.0, 3.0] and errors["first step"].mse.tolist() == [1.0, 9.0]
    assert errors["executed"].mae.tolist() == [0.5, 1.5] and errors["executed"].mae_std.tolist() == [0.5, 1.5]
    assert errors["chunk"].steps == 6 and errors["chunk"].mae.tolist() == pytest.approx(
        [1 / 3, 1.0]
    )  # step 3 is padding
    held = baselines(np.array([[1.0, 2.0]], np.float32), np.array([5.0, 6.0], np.float32), 3)
    assert held["hold last action"].tolist() == [[[1.0, 2.0]] * 3] and held["mean action"].tolist() == [
        [[5.0, 6.0]] * 3
    ]


def test_auroc_of_separated_equal_and_reversed_scores():
    assert auroc(np.array([2.0, 3.0]), np.array([0.0, 1.0])) == 1.0
    assert auroc(np.array([1.0, 1.0]), np.array([1.0, 1.0])) == 0.5
    assert auroc(np.array([0.0, 2.0]), np.array([1.0, 3.0])) == 0.25
    assert np.isnan(auroc(np.array([]), np.array([1.0])))


# ---- configuration and run files


def test_a_configuration_reads_back_equal_and_names_what_is_wrong():
    config = TrainConfig(
        "p", "o", (TaskData("a", "x", 0.5, (1, 2), (3,)),), craft=CraftConfig(anchors="c", merge="equal")
    )
    assert build(TrainConfig, to_json(config), "run", ConfigError) == config
    with pytest.raises(ConfigError, match="unknown field stepz; did you mean 'steps'"):
        build(TrainConfig, {**to_json(config), "stepz": 3}, "run", ConfigError)
    with pytest.raises(ConfigError, match="run: optimizer.lr is 'high'"):
        build(TrainConfig, {**to_json(config), "optimizer": {"lr": "high"}}, "run", ConfigError)
    with pytest.raises(ConfigError, match="precision 'fp8'"):
        TrainConfig("p", "o", (), precision="fp8")


def test_metrics_survive_a_torn_line_and_are_cut_at_the_resumed_step(tmp_path: Path):
    for step in range(1, 6):
        append_metrics(tmp_path, {"step": step, "loss": 1 / step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4, 5]
    cut_metrics(tmp_path, 3)
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3]


def test_status_tells_what_a_person_asks_for(tmp_path: Path):
    write_status(tmp_path, Status("failed", 40, 100, 0.5, 1e-4, 0.25, 3700.0, 0.4, 30, "out of memory"))
    told = describe(tmp_path)
    for piece in (
        "failed",
        "40 of 100",
        "0.50000",
        "0.0001",
        "0.250",
        "1 h 01 min",
        "0.40000 at step 30",
        "out of memory",
    ):
        assert piece in told
    with pytest.raises(TrainingError, match="status.json: missing; give the output folder"):
        describe(tmp_path / "elsewhere")
