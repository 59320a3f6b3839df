# SPDX-License-Identifier: Apache-2.0
"""What cameras, padding, caches, joints and queues do, on tiny random policies.

Tolerance 1e-5 of the largest value: float32 in another order of summation.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vla_edge.errors import ConfigError, ObservationError
from vla_edge.policies.smolvla.aloha import encode_actions, encode_actions_inverse
from vla_edge.policies.smolvla.vision import tokens_per_image

TOLERANCE = 1e-5
CAMERAS = ("laptop", "phone", "top")


def relative(ours: torch.Tensor | np.ndarray, expected: torch.Tensor | np.ndarray) -> float:
    a, b = (np.asarray(item, dtype=np.float64) for item in (ours, expected))
    assert a.shape == b.shape
    return float(np.abs(a - b).max() / np.abs(b).max())


@torch.no_grad()
def test_a_cached_prefix_with_a_new_state_equals_a_full_run_with_that_state(random_policy, observe) -> None:
    policy = random_policy()
    first = policy.prepare(policy.preprocess(observe(policy)))
    scene = policy.model.scene_of(first)
    policy.model.run_state(scene, first.state)
    new_state = first.state.flip(1)
    cached = policy.model.run_state(scene, new_state)
    rows, mask = policy.model.embed_prefix(
        policy.model.embed_images(first.images), first.image_masks, first.token_ids, first.token_mask
    )
    fresh = policy.model.run_together(rows, mask, new_state)
    noise = torch.randn(1, 50, 32, generator=torch.Generator().manual_seed(1))
    assert relative(policy.model.integrate(cached, noise, 10), policy.model.integrate(fresh, noise, 10)) < TOLERANCE
    assert (
        relative(
            policy.model.integrate(cached, noise, 10),
            policy.model.integrate(policy.model.run_state(scene, first.state), noise, 10),
        )
        > 1e-3
    )


@pytest.mark.parametrize("cameras", [1, 3])
@torch.no_grad()
def test_other_camera_counts_run_and_every_camera_matters(cameras: int, random_policy, observe) -> None:
    policy = random_policy(cameras=CAMERAS[:cameras])
    seen = observe(policy, CAMERAS[:cameras])
    noise = torch.zeros(1, 50, 32)
    chunk = policy.predict_action_chunk(policy.preprocess(seen), noise)
    assert isinstance(chunk, torch.Tensor) and chunk.shape == (1, 50, 6) and torch.isfinite(chunk).all()
    for name in CAMERAS[:cameras]:
        changed = {**seen, f"observation.images.{name}": 255 - seen[f"observation.images.{name}"]}
        assert relative(policy.predict_action_chunk(policy.preprocess(changed), noise), chunk) > 1e-4


@torch.no_grad()
def test_a_missing_camera_is_skipped_and_later_tokens_move_up(random_policy, observe) -> None:
    policy = random_policy()
    inputs = policy.prepare(policy.preprocess(observe(policy, ("phone",))))
    assert len(inputs.images) == 1
    _, mask = policy.model.embed_prefix(
        policy.model.embed_images(inputs.images), inputs.image_masks, inputs.token_ids, inputs.token_mask
    )
    assert mask.shape[1] == 4 + policy.config.tokenizer_max_length


@torch.no_grad()
def test_an_empty_camera_changes_nothing_unless_its_special_tokens_are_seen(random_policy, observe) -> None:
    noise = torch.randn(1, 50, 32, generator=torch.Generator().manual_seed(2))
    for special in (False, True):
        chunks = []
        for empty in (0, 1):
            policy = random_policy(f"policy{special}{empty}", add_image_special_tokens=special, empty_cameras=empty)
            chunks.append(policy.predict_action_chunk(policy.preprocess(observe(policy)), noise))
        assert (relative(chunks[0], chunks[1]) > 1e-4) == special


@torch.no_grad()
def test_an_empty_camera_named_among_the_features_is_no_camera(random_policy, observe) -> None:
    policy = random_policy(cameras=("laptop", "empty_camera_0"), empty_cameras=1)
    assert [camera.name for camera in policy.settings.cameras] == ["observation.images.laptop"]
    assert len(policy.prepare(policy.preprocess(observe(policy, ("laptop",)))).images) == 2


@torch.no_grad()
def test_left_and_right_language_padding_give_the_same_actions(random_policy, observe) -> None:
    policy = random_policy()
    batch = policy.preprocess(observe(policy))
    tokens, mask = batch["observation.language.tokens"], batch["observation.language.attention_mask"]
    count = int(mask.sum())
    left = {
        **batch,
        "observation.language.tokens": tokens.roll(-count, 1),
        "observation.language.attention_mask": mask.roll(-count, 1),
    }
    noise = torch.ones(1, 50, 32)
    assert relative(policy.predict_action_chunk(left, noise), policy.predict_action_chunk(batch, noise)) < TOLERANCE


def test_pictures_that_form_no_square_of_blocks_are_refused(random_policy, observe) -> None:
    policy = random_policy()
    assert tokens_per_image(policy.backbone, 128, 128) == 4
    for height, width in ((128, 192), (96, 80), (80, 80)):
        with pytest.raises(ConfigError, match="patches"):
            tokens_per_image(policy.backbone, height, width)


@torch.no_grad()
def test_pictures_without_resizing_keep_their_own_size(random_policy, observe) -> None:
    policy = random_policy(resize_imgs_with_padding=None, image_width=64, image_height=64)
    seen = observe(policy, ())
    batch = policy.preprocess({**seen, "observation.images.laptop": np.full((64, 64, 3), 51, np.uint8)})
    images = policy.prepare(batch).images
    assert images[0].shape == (1, 3, 64, 64) and torch.allclose(images[0], torch.tensor(-0.6))
    with pytest.raises(ConfigError, match="square"):
        policy.predict_action_chunk(
            policy.preprocess({**seen, "observation.images.laptop": np.zeros((48, 64, 3), np.uint8)})
        )


def test_expert_layers_that_meet_the_wrong_kind_of_attention_are_refused(random_policy, observe) -> None:
    with pytest.raises(ConfigError, match="num_expert_layers 2 with self_attn_every_n_layers 2"):
        random_policy(num_expert_layers=2)
    with pytest.raises(ConfigError, match="num_expert_layers is 3, must divide the 4"):
        random_policy(num_expert_layers=3)


@torch.no_grad()
def test_aloha_joints_are_turned_as_in_lerobot_on_normalised_values(random_policy, observe) -> None:
    policy = random_policy(joints=14, adapt_to_pi_aloha=True)
    batch = policy.preprocess(observe(policy))
    inputs = policy.prepare(batch)
    raw, turned = batch["observation.state"][0].double().numpy(), inputs.state[0].double().numpy()
    for joint in range(14):
        if joint in (1, 2, 8, 9):
            assert turned[joint] == -raw[joint]
        elif joint in (6, 13):
            opening = raw[joint] * (0.058 - 0.01844) + 0.01844
            angle = np.arcsin(np.clip((0.022**2 + opening**2 - 0.036**2) / (2 * 0.022 * opening), -1, 1))
            assert turned[joint] == pytest.approx((angle - 0.4) / 1.1, rel=1e-4, abs=1e-5)
        else:
            assert turned[joint] == raw[joint]
    noise = torch.ones(1, 50, 32)
    made = policy.model.integrate(policy.model.prefix_of(inputs), noise, policy.config.num_steps)
    plain = made[0, :, :14].double().numpy()
    chunk = policy.predict_action_chunk(batch, noise)
    assert isinstance(chunk, torch.Tensor)
    expected = plain.copy()
    expected[:, [1, 2, 8, 9]] *= -1
    expected[:, [6, 13]] = (plain[:, [6, 13]] * 1.1 + 0.4 + 0.6213) / (1.4910 + 0.6213)
    assert relative(chunk[0], expected) < TOLERANCE
    with pytest.raises(ConfigError, match="adapt_to_pi_aloha"):
        random_policy("six", adapt_to_pi_aloha=True)


def test_recorded_aloha_actions_come_back_from_the_policys_joints() -> None:
    actions = torch.randn(2, 5, 14, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(encode_actions(encode_actions_inverse(actions)), actions, atol=1e-6)


@torch.no_grad()
def test_select_action_hands_out_a_chunk_one_by_one_and_reset_forgets_it(random_policy, observe) -> None:
    policy = random_policy(n_action_steps=3)
    batch = policy.preprocess(observe(policy))
    noise = torch.ones(1, 50, 32)
    chunk = policy.predict_action_chunk(batch, noise)
    assert isinstance(chunk, torch.Tensor)
    taken = [policy.select_action(batch, noise) for _ in range(4)]
    assert torch.equal(torch.stack(taken[:3], 1), chunk[:, :3]) and torch.equal(taken[3], chunk[:, 0])
    policy.reset()
    assert torch.equal(policy.select_action(batch, noise), chunk[:, 0])


def test_observations_that_do_not_fit_are_named(random_policy, observe) -> None:
    policy = random_policy()
    good = observe(policy)
    for change, words in (
        ({"observation.state": np.zeros(5, np.float32)}, r"observation.state has shape \[5\]"),
        ({"observation.images.laptop": np.zeros((48, 64), np.uint8)}, "observation.images.laptop: picture has shape"),
        ({"observation.images.phone": np.zeros((48, 64, 3), np.int32)}, "observation.images.phone: picture has type"),
    ):
        with pytest.raises(ObservationError, match=words):
            policy.preprocess({**good, **change})
    with pytest.raises(ObservationError, match="no camera of the policy"):
        policy.prepare(policy.preprocess({key: value for key, value in good.items() if "images" not in key}))
    with pytest.raises(ObservationError, match="no task"):
        policy.preprocess({key: value for key, value in good.items() if key != "task"})
    with pytest.raises(ObservationError, match="noise has shape"):
        policy.predict_action_chunk(policy.preprocess(good), torch.zeros(1, 3, 32))
