# SPDX-License-Identifier: Apache-2.0
"""The CLS head and the delta expert: what they may not change, what they see, and how they are trained."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from vla_edge.errors import ConfigError, TrainingError
from vla_edge.policies.smolvla.cls import observe as observe_scene
from vla_edge.policies.smolvla.cls import similarity, why_no_gate
from vla_edge.policies.smolvla.delta import delta_parameters, predict_velocity, shift_chunk, suffix_mask
from vla_edge.policies.smolvla.policy import SmolVLAPolicy
from vla_edge.policies.smolvla.vicreg import VicregWeights, vicreg

NOISE = torch.randn(1, 50, 32, generator=torch.Generator().manual_seed(4))
HEADS = {"cls": True, "delta": True}


def batch_of(policy: SmolVLAPolicy, observe: Any, count: int, seed: int = 0) -> dict[str, Any]:
    """A training batch of `count` different observations with normalised actions and some padded steps."""
    singles = [policy.preprocess(observe(policy, seed=seed + index)) for index in range(count)]
    batch = {name: torch.cat([single[name] for single in singles]) for name in singles[0]}
    generator = torch.Generator().manual_seed(seed)
    batch["action"] = torch.randn(count, policy.config.chunk_size, policy.config.action_dim, generator=generator)
    batch["action_is_pad"] = torch.zeros(count, policy.config.chunk_size, dtype=torch.bool)
    batch["action_is_pad"][0, 30:] = True
    return batch


def test_enabling_the_heads_changes_the_base_chunk_by_exactly_zero(random_policy, observe) -> None:
    plain, headed = random_policy("plain"), random_policy("headed", **HEADS)
    shared = {name: tensor for name, tensor in headed.state_dict().items() if name in plain.state_dict()}
    plain.load_state_dict(shared)
    batch = plain.preprocess(observe(plain))
    expected = plain.predict_action_chunk(batch, NOISE)
    actions, tokens, should_cache = headed.predict_action_chunk(batch, NOISE, compute_cls_similarity=True)
    assert (actions - expected).abs().max().item() == 0.0
    assert tokens.shape == (1, 2, 72) and should_cache.shape == (1,)


@torch.no_grad()
def test_observation_tokens_see_pictures_and_task_but_neither_state_nor_each_other(random_policy, observe) -> None:
    policy = random_policy(**HEADS)
    seen = observe(policy)

    def tokens(observation: dict[str, Any]) -> torch.Tensor:
        return observe_scene(policy.model, policy.model.scene_of(policy.prepare(policy.preprocess(observation))))

    first = tokens(seen)
    assert torch.equal(tokens({**seen, "observation.state": seen["observation.state"] + 30}), first)
    assert not torch.equal(tokens({**seen, "task": "Open the drawer"}), first)
    name = "observation.images.phone"
    assert not torch.equal(tokens({**seen, name: 255 - seen[name]}), first)
    policy.model.pre_cls_param[:, 1] += 1
    changed = tokens(seen)
    assert torch.equal(changed[:, 0], first[:, 0]) and not torch.equal(changed[:, 1], first[:, 1])


@torch.no_grad()
def test_observation_tokens_do_not_depend_on_how_the_language_is_padded(random_policy, observe) -> None:
    policy = random_policy(**HEADS)
    batch = policy.preprocess(observe(policy))
    count = int(batch["observation.language.attention_mask"].sum())
    short = {
        **batch,
        **{
            name: batch[name][:, :count]
            for name in ("observation.language.tokens", "observation.language.attention_mask")
        },
    }
    full, cut = (observe_scene(policy.model, policy.model.scene_of(policy.prepare(item))) for item in (batch, short))
    assert (full - cut).abs().max() < 1e-5 * full.abs().max()  # another number of rows sums in another order


def test_the_suffix_mask_lets_each_action_token_see_its_own_context() -> None:
    visible = suffix_mask(steps=8, tokens=2, context=3)
    assert torch.equal(visible[:8, :8], torch.ones(8, 8, dtype=torch.bool).tril()) and not visible[:8, 8:].any()
    assert visible[8].nonzero().flatten().tolist() == [0, 1, 2, 8]
    assert visible[9].nonzero().flatten().tolist() == [5, 6, 7, 9]
    three = suffix_mask(steps=8, tokens=3, context=3)
    assert [three[8 + i].nonzero().flatten().tolist() for i in range(3)] == [[0, 1, 2, 8], [2, 3, 4, 9], [5, 6, 7, 10]]
    assert torch.equal(suffix_mask(steps=8, tokens=0, context=3), visible[:8, :8])


@torch.no_grad()
def test_action_tokens_read_their_actions_and_leave_the_velocity_alone(random_policy, observe) -> None:
    policy = random_policy(**HEADS)
    prefix = policy.model.prefix_of(policy.prepare(policy.preprocess(observe(policy))))
    velocity, tokens = predict_velocity(policy.model, prefix, NOISE)
    assert velocity.shape == (1, 50, 32) and tokens is not None and tokens.shape == (1, 2, 72)
    later = NOISE.clone()
    later[:, 10:] += 1
    _, after = predict_velocity(policy.model, prefix, later)
    assert after is not None and torch.equal(after[:, 0], tokens[:, 0]) and not torch.equal(after[:, 1], tokens[:, 1])
    policy.model.suf_cls_param += 1
    assert torch.equal(predict_velocity(policy.model, prefix, NOISE)[0], velocity)


@torch.no_grad()
def test_the_delta_expert_starts_as_the_experts_twin_and_corrects_by_adding(random_policy, observe) -> None:
    policy = random_policy(delta=True)
    experts = policy.model.vlm_with_expert
    twin = experts.lm_expert.state_dict()
    assert all(torch.equal(tensor, twin[name]) for name, tensor in experts.delta_expert.state_dict().items())
    batch = policy.preprocess(observe(policy))
    velocity, tokens = predict_velocity(policy.model, policy.model.prefix_of(policy.prepare(batch)), NOISE)
    assert tokens is None and torch.equal(policy.correct_action_chunk(batch, NOISE), NOISE + velocity)
    with pytest.raises(ConfigError, match="no delta expert"):
        random_policy("plain").correct_action_chunk(batch, NOISE)


def test_the_gate_decides_per_sample_and_keeps_the_reference_while_the_scene_is_stable(random_policy, observe) -> None:
    policy = random_policy(**HEADS, cls_similarity_threshold=0.5)
    policy._decide(torch.ones(2, 2, 72))
    assert policy.cache_reason == "no_history" and policy.last_similarity is None and not policy.should_cache.any()
    now = torch.ones(2, 2, 72)
    now[1, 0] = -1
    now[:, 1] = 3
    decision = policy._decide(now)
    assert policy.cache_reason == "similarity" and decision.tolist() == [True, False]
    assert policy.last_similarity is not None and policy.last_similarity.tolist() == pytest.approx([1.0, -1.0])
    assert torch.equal(policy._reference[0], torch.ones(2, 72)) and torch.equal(policy._reference[1], now[1])
    policy.reset()
    assert policy.last_similarity is None and policy.should_cache is None
    with pytest.raises(ConfigError, match="needs a CLS head"):
        plain = random_policy("plain")
        plain.predict_action_chunk(plain.preprocess(observe(plain)), NOISE, compute_cls_similarity=True)


def test_similarity_takes_the_tokens_it_is_told() -> None:
    now, reference = torch.randn(3, 2, 8), torch.randn(3, 2, 8)
    expected = (now[:, 0] * reference[:, 1]).sum(1) / now[:, 0].norm(dim=1) / reference[:, 1].norm(dim=1)
    # A cosine near zero is the difference of numbers near one: its error is absolute, some roundings of float32.
    assert torch.allclose(similarity(now, reference), expected, rtol=0, atol=1e-6)
    assert torch.allclose(similarity(now, now, 1, 1), torch.ones(3), rtol=0, atol=1e-6)


def test_an_unmarked_or_constant_head_is_no_gate(random_policy) -> None:
    assert "no CLS head" in (why_no_gate(random_policy("plain").model) or "")
    assert "never trained" in (why_no_gate(random_policy("fresh", **HEADS).model) or "")
    trained = random_policy("trained", **HEADS, cls_trained=True)
    assert why_no_gate(trained.model) is None
    with torch.no_grad():
        trained.model.obs_cls_proj.fc2.weight.zero_()
    assert "same answer" in (why_no_gate(trained.model) or "")


def test_heads_survive_saving_and_the_file_decides_whether_they_exist(random_policy, tmp_path) -> None:
    policy = random_policy(**HEADS, cls_trained=True)
    policy.save_pretrained(tmp_path / "saved")
    again = SmolVLAPolicy.from_pretrained(tmp_path / "saved")
    assert (
        again.config.use_cls_head and again.config.cls_trained and again.config.train_delta_expert and again.notes == ()
    )
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in policy.state_dict().items())
    config = tmp_path / "saved" / "config.json"
    config.write_text(
        config.read_text()
        .replace('"train_delta_expert": true', '"train_delta_expert": false')
        .replace('"use_cls_head": true', '"use_cls_head": false')
    )
    loaded = SmolVLAPolicy.from_pretrained(tmp_path / "saved")
    assert (
        loaded.config.use_cls_head
        and loaded.config.has_delta
        and not loaded.config.train_delta_expert
        and len(loaded.notes) == 2
    )


def test_the_configuration_cannot_change_after_the_model_is_built(random_policy) -> None:
    policy = random_policy()
    with pytest.raises(dataclasses.FrozenInstanceError):
        policy.config.use_cls_head = True
    with pytest.raises(ConfigError, match="delta_target is 'later'"):
        dataclasses.replace(policy.config, delta_target="later")
    with pytest.raises(ConfigError, match="num_cls_prefix is 1, must be 2 to 8"):
        dataclasses.replace(policy.config, num_cls_prefix=1)
    with pytest.raises(ConfigError, match=r"num_cls_suffix is 2, must be num_cls_prefix \(3\)"):
        dataclasses.replace(policy.config, num_cls_prefix=3)


# ---- VICReg


def plain_vicreg(a: np.ndarray, b: np.ndarray) -> float:
    """The formula of docs/training-methods.md §1 with loops, weights 25, 25, 1."""
    n, d = a.shape
    total = 25 * sum((a[i, j] - b[i, j]) ** 2 for i in range(n) for j in range(d)) / (n * d)
    for z in (a, b):
        mean = z.mean(axis=0)
        cov = sum(np.outer(row - mean, row - mean) for row in z) / (n - 1)
        total += 25 * sum(max(0.0, 1 - np.sqrt(cov[j, j] + 1e-4)) for j in range(d)) / d
        total += sum(cov[i, j] ** 2 for i in range(d) for j in range(d) if i != j) / d
    return total


def test_vicreg_equals_the_formula_token_by_token() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.normal(0, 0.7, (33, 2, 5)), generator.normal(0.2, 1.1, (33, 2, 5))
    expected = np.mean([plain_vicreg(first[:, token], second[:, token]) for token in (0, 1)])
    ours = vicreg(torch.from_numpy(first), torch.from_numpy(second), VicregWeights(25, 25, 1))
    assert ours.item() == pytest.approx(expected, rel=1e-5)  # float32 against float64


def test_vicreg_refuses_a_batch_of_one() -> None:
    with pytest.raises(TrainingError, match="batch of at least 2, got 1"):
        vicreg(torch.ones(1, 2, 5), torch.ones(1, 2, 5), VicregWeights(25, 25, 1))


# ---- training


def test_the_flow_loss_is_the_masked_mean_over_real_dimensions(random_policy, observe) -> None:
    policy = random_policy()
    batch = batch_of(policy, observe, 2)
    noise, time = torch.randn(2, 50, 32), torch.tensor([0.3, 0.8])
    loss, parts = policy(batch, noise, time)
    padded = torch.nn.functional.pad(batch["action"], (0, 26))
    mix = time[:, None, None]
    with torch.no_grad():
        velocity = policy.model.denoise_step(
            policy.model.prefix_of(policy.prepare(batch)), mix * noise + (1 - mix) * padded, time
        )
    error = ((noise - padded) - velocity).square()
    assert torch.allclose(
        parts["losses_after_forward"], error, rtol=1e-4, atol=1e-5
    )  # batches of other shapes sum in another order
    expected = (error[0, :30, :6].sum() + error[1, :, :6].sum()) / (80 * 6)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4) and parts["loss"] == loss.item()
    assert parts["losses_after_in_ep_bound"][0, 30:].abs().max() == 0 and parts["losses_after_rm_padding"].shape == (
        2,
        50,
        6,
    )
    del batch["action_is_pad"]
    assert policy(batch, noise, time)[0].item() == pytest.approx(error[:, :, :6].mean().item(), rel=1e-4)


def test_gradients_reach_expert_and_state_projection_and_stop_at_the_frozen_backbone(random_policy, observe) -> None:
    policy = random_policy().train()
    policy(batch_of(policy, observe, 2))[0].backward()
    for name, parameter in policy.named_parameters():
        frozen = ".vlm." in name
        assert parameter.requires_grad != frozen and (parameter.grad is None) == frozen, name
        assert frozen or parameter.grad.abs().max() > 0, name
    assert not policy.model.vlm_with_expert.vlm.model.text_model.layers[0].self_attn.q_proj.training
    assert policy.model.action_in_proj.training


def test_training_the_backbone_reaches_vision_tower_and_text(random_policy, observe) -> None:
    policy = random_policy(train_expert_only=False, freeze_vision_encoder=False)
    policy(batch_of(policy, observe, 2))[0].backward()
    backbone = policy.model.vlm_with_expert.vlm.model
    assert backbone.vision_model.embeddings.patch_embedding.weight.grad.abs().max() > 0
    assert backbone.text_model.layers[0].self_attn.q_proj.weight.grad.abs().max() > 0


def test_delta_training_moves_only_its_own_parameters_and_lowers_the_denoise_error(random_policy, observe) -> None:
    torch.manual_seed(0)
    policy = random_policy(
        **HEADS,
        num_vlm_layers=2,
        num_steps=2,
        cls_noise_scale=0.5,
        chunk_size=10,
        n_action_steps=10,
        delta_target="noise",
    ).train()
    names = {f"model.{name}" for name, _ in delta_parameters(policy.model)}
    assert {name for name, parameter in policy.named_parameters() if parameter.requires_grad} == names
    batch = batch_of(policy, observe, 4)
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    optimiser = torch.optim.Adam([parameter for parameter in policy.parameters() if parameter.requires_grad], lr=1e-3)
    errors = []
    for _ in range(12):
        loss, parts = policy(batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        errors.append(parts["delta_loss"])
    assert {
        "loss",
        "cls_loss",
        "delta_loss_relative",
        "delta_losses_after_forward",
        "delta_losses_after_in_ep_bound",
        "delta_losses_after_rm_padding",
    } < parts.keys()
    assert parts["loss"] == pytest.approx(
        parts["delta_loss"] + policy.config.vicreg_weight * parts["cls_loss"], rel=1e-5
    )
    assert np.mean(errors[-3:]) < 0.5 * errors[0]
    moved = {name for name, tensor in policy.state_dict().items() if not torch.equal(tensor, before[name])}
    unread = {name for name in names - moved if not name.endswith(("k_proj.weight", "q_proj.weight"))}
    assert moved <= names and not unread


def test_a_stale_context_is_the_shifted_chunk_and_its_held_tail_does_not_count(random_policy, observe) -> None:
    chunk = torch.arange(5.0)[None, :, None].expand(2, 5, 3)
    shifted, held = shift_chunk(chunk, 2)
    assert shifted[0, :, 0].tolist() == [2, 3, 4, 4, 4] and held[0].tolist() == [False, False, False, True, True]
    policy = random_policy(delta=True, delta_target="stale", chunk_size=10, n_action_steps=10, num_steps=2)
    batch = batch_of(policy, observe, 2)
    del batch["action_is_pad"]
    with pytest.raises(TrainingError, match="delta_context"):
        policy(batch)
    noise = torch.randn(2, 10, 32)
    batch["delta_context"], batch["delta_context_is_pad"] = shift_chunk(torch.randn(2, 10, 32), 3)
    loss, parts = policy(batch, noise)
    with torch.no_grad():
        prefix = policy.model.prefix_of(policy.prepare(batch))
        target = policy.model.integrate(prefix, noise, 2) - batch["delta_context"]
        error = (predict_velocity(policy.model, prefix, batch["delta_context"])[0] - target).square()
    assert loss.item() == pytest.approx(error[:, :7, :6].mean().item(), rel=1e-4)
    assert parts["delta_loss_relative"] == pytest.approx(
        (error[:, :7, :6].mean() / target[:, :7, :6].square().mean()).item(), rel=1e-4
    )
