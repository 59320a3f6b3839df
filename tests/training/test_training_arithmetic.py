# SPDX-License-Identifier: Apache-2.0
"""A step's arithmetic: one sum over the step's valid steps, float32 where it matters, gradients scaled for float16."""

from __future__ import annotations

import csv
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from vla_edge.policies.smolvla.policy import SmolVLAPolicy
from vla_edge.policies.smolvla.text import KeyValue, attend
from vla_edge.policies.smolvla.vicreg import VicregWeights, vicreg
from vla_edge.training import loop as training_loop
from vla_edge.training.craft.anchors import AnchorPlan, build_anchors
from vla_edge.training.objective import Objective, step_shares, valid_steps
from vla_edge.training.run_config import CraftConfig, TaskData
from vla_edge.training.run_files import read_metrics
from vla_edge.training.runs import fine_tune, resume
from vla_edge.training.training_frames import Frames, FrameSettings, collate

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.training.training_world import CAMERA, interrupt_at, one_thread, two_steps

one_thread()
config = partial(two_steps, steps=4)


def test_two_micro_batches_give_the_gradient_of_their_joint_batch_even_when_one_holds_episode_ends(world):
    policy = SmolVLAPolicy.from_pretrained(world / "policy")
    objective = Objective(policy, False).train()
    frames = Frames(TaskData("data", str(world / "data")), FrameSettings((CAMERA,), 4, 0))
    picks = [0, 1, 6, 7], [5, 11, 17, 23]
    parts = [collate([frames.sample(i, 0) for i in pick], policy) for pick in picks]
    joint = collate([frames.sample(i, 0) for pick in picks for i in pick], policy)
    generator = torch.Generator().manual_seed(1)
    noise, time = torch.randn(8, 4, 8, generator=generator), torch.rand(8, generator=generator)

    def gradient(batches: list[dict], shares: list[float]) -> torch.Tensor:
        policy.zero_grad()
        for i, (batch, share) in enumerate(zip(batches, shares)):
            rows = slice(4 * i, 4 * i + 4) if len(batches) > 1 else slice(None)
            loss, _ = objective(batch, noise=noise[rows], time=time[rows], share=share)
            (loss / len(batches)).backward()
        return torch.cat([weight.grad.flatten() for weight in policy.parameters() if weight.grad is not None])

    counts = [valid_steps(batch) for batch in parts]
    assert counts == [16, 4]
    whole = gradient([joint], [1.0])
    torch.testing.assert_close(gradient(parts, step_shares(counts, 20, 2)), whole, rtol=1e-4, atol=1e-6)
    plain = gradient(parts, [1.0, 1.0])
    assert torch.cosine_similarity(plain, whole, dim=0) < 0.99  # what a mean of means would have done


def test_a_run_weighs_its_micro_batches_by_their_valid_steps(world, tmp_path, monkeypatch):
    seen: list[tuple[int, float]] = []
    plain = Objective.forward

    def forward(self, batch, noise=None, time=None, share=1.0):
        seen.append((valid_steps(batch), share))
        return plain(self, batch, noise, time, share)

    monkeypatch.setattr(Objective, "forward", forward)
    fine_tune(config(world, tmp_path / "run", accumulation=3))
    for step in range(4):
        own = seen[3 * step : 3 * step + 3]
        assert [share for _, share in own] == step_shares([n for n, _ in own], sum(n for n, _ in own), 3)
    assert len(seen) == 12 and any(share != 1.0 for _, share in seen)


def test_scores_velocity_and_vicreg_stay_float32_under_autocast(world):
    query = torch.tensor([[[[100.0, 1.0]]]]).repeat(1, 1, 1, 1) * 2**0.5
    key = torch.tensor([[[[1.0, 0.0]], [[1.0, 0.25]]]])  # scores 100 and 100.25, which bfloat16 cannot tell apart
    value = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])
    visible = torch.ones(1, 1, 2, dtype=torch.bool)
    exact = attend(query, KeyValue(key, value), visible)
    one, other = torch.randn(2, 8, 2, 5, generator=torch.Generator().manual_seed(0)).unbind()
    policy = SmolVLAPolicy.from_pretrained(world / "policy")
    with torch.autocast("cpu", torch.bfloat16):
        rough = attend(query, KeyValue(key, value), visible)
        held = vicreg(one, other, VicregWeights(25, 25, 1))
        batch = {"observation.state": torch.zeros(2, 2), CAMERA: torch.zeros(2, 64, 64, 3, dtype=torch.uint8)}
        batch["observation.language.tokens"] = torch.zeros(2, 16, dtype=torch.int64)
        batch["observation.language.attention_mask"] = torch.ones(2, 16, dtype=torch.bool)
        prefix = policy.model.prefix_of(policy.prepare(batch))
        assert policy.model.denoise_step(prefix, torch.zeros(2, 4, 8), torch.ones(2)).dtype == torch.float32
    assert abs(float(rough[0, 0, 0]) - float(exact[0, 0, 0])) < 2e-3 and abs(float(exact[0, 0, 0]) - 0.5) > 0.04
    assert torch.equal(held, vicreg(one, other, VicregWeights(25, 25, 1)))


def test_float16_scales_its_gradients_skips_one_that_overflows_and_resumes_exactly(world, tmp_path, monkeypatch):
    fine_tune(config(world, tmp_path / "whole", precision="fp16"))
    rows = read_metrics(tmp_path / "whole")
    assert all(row["loss_scale"] >= 1 and row["skipped"] in (0.0, 1.0) for row in rows)

    with pytest.raises(KeyboardInterrupt):
        fine_tune(config(world, tmp_path / "broken", precision="fp16"), interrupt_at(3))
    resume(tmp_path / "broken")
    name = "checkpoints/000004/pretrained_model/model.safetensors"
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "broken" / name).read_bytes()

    class Hot(torch.amp.GradScaler):
        def __init__(self, device: str, enabled: bool) -> None:
            super().__init__(device, init_scale=2.0**40, enabled=enabled)

    monkeypatch.setattr(training_loop.torch.amp, "GradScaler", Hot)
    fine_tune(config(world, tmp_path / "hot", precision="fp16"))
    first = read_metrics(tmp_path / "hot")[0]
    assert first["skipped"] == 1.0 and first["grad_norm"] is None and first["loss_scale"] == 2.0**39


def test_craft_leaves_the_first_step_to_the_task(world, tmp_path):
    policy = SmolVLAPolicy.from_pretrained(world / "policy")
    plan = AnchorPlan((TaskData("data", str(world / "data")),), 8)
    build_anchors(policy, plan, tmp_path / "anchors", torch.device("cpu"))
    craft = CraftConfig(str(tmp_path / "anchors"), every=2, anchor_batch=2, merge="equal")
    fine_tune(config(world, tmp_path / "run", craft=craft, statistics="checkpoint"))
    with (tmp_path / "run" / "lambda_history.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["3"]
    fine_tune(config(world, tmp_path / "plain", statistics="checkpoint"))
    first = [read_metrics(tmp_path / name)[0]["grad_norm"] for name in ("run", "plain")]
    assert first[0] == first[1]


def test_a_fresh_delta_expert_corrects_nothing(world, tmp_path):
    fine_tune(config(world, tmp_path / "run", kind="delta", delta_target="stale", batch_size=8))
    rows = read_metrics(tmp_path / "run")
    assert rows[0]["delta_loss_relative"] == pytest.approx(1.0)
