# SPDX-License-Identifier: Apache-2.0
"""Our ACT against LeRobot's own, stage by stage, on weights that both make from the tensors' names."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vla_edge.ensembling import TemporalEnsemble
from vla_edge.errors import ConfigError
from vla_edge.policies.act.config import ACTConfig
from vla_edge.policies.act.network import ACT, loss
from vla_edge.policies.features import Feature

HERE = Path(__file__).resolve().parents[2] / "golden" / "act"
sys.path.insert(0, str(HERE))
from numbers_of_act import CAMERAS, COMMON, JOINTS, POLICIES, inputs, numbers, weight  # noqa: E402

GOLDEN = [HERE / f"lerobot{version}.npz" for version in ("044", "061")]
TOLERANCE = 1e-5
"""Of each stage's largest value: float32 rounding, where the order of sums differs (worst seen 2e-6)."""

INPUTS = (
    Feature("observation.state", "STATE", (JOINTS,)),
    *(Feature(f"observation.images.{camera}", "VISUAL", (3, *size)) for camera, size in CAMERAS.items()),
)
OUTPUTS = (Feature("action", "ACTION", (JOINTS,)),)


@pytest.fixture(scope="module", params=GOLDEN, ids=lambda path: path.stem)
def golden(request: pytest.FixtureRequest) -> dict[str, Any]:
    with np.load(request.param) as content:
        return dict(content)


def network(name: str) -> ACT:
    made = ACT(ACTConfig(INPUTS, OUTPUTS, dropout=0.0, **{**COMMON, **POLICIES[name]}))
    state = made.state_dict()
    made.load_state_dict(
        {
            key: value if key.endswith("pos_enc") else torch.from_numpy(weight(f"model.{key}", tuple(value.shape)))
            for key, value in state.items()
        }
    )
    return made.eval()


def close(ours: torch.Tensor, theirs: np.ndarray) -> None:
    assert tuple(ours.shape) == theirs.shape
    assert np.abs(ours.detach().numpy() - theirs).max() <= TOLERANCE * np.abs(theirs).max()


@pytest.mark.parametrize("name", POLICIES)
def test_tensor_names_and_shapes_are_lerobots(name: str, golden: dict[str, Any]) -> None:
    ours = sorted(f"model.{key} {list(value.shape)}" for key, value in network(name).state_dict().items())
    assert ours == golden[f"{name}.keys"].tolist()


@pytest.mark.parametrize("name", POLICIES)
def test_every_stage_equals_lerobots(name: str, golden: dict[str, Any]) -> None:
    made = network(name)
    given = {key: torch.from_numpy(value) for key, value in inputs().items()}
    pictures = [given[camera] for camera in CAMERAS]
    with torch.no_grad():
        close(made.backbone(pictures[0][:1]), golden[f"{name}.features"])
        encoded = [made.encode_picture(picture) for picture in pictures]
        close(made.decode(encoded, given["state"]), golden[f"{name}.chunk"])
        close(made(pictures, given["state"]), golden[f"{name}.chunk"])


@pytest.mark.parametrize("name", POLICIES)
def test_training_loss_and_gradient_equal_lerobots(name: str, golden: dict[str, Any]) -> None:
    """LeRobot 0.6 divides by the steps that count, as we do; 0.4.4 divided by all of them, padded ones too."""
    made = network(name)
    given = {key: torch.from_numpy(value) for key, value in inputs().items()}
    noise = given["noise"] if made.config.use_vae else None
    whole, absolute, divergence = loss(
        made, [given[camera] for camera in CAMERAS], given["state"], given["actions"], given["is_pad"], noise
    )
    share = 1.0 if golden["divides_by_valid"] else float((~given["is_pad"]).float().mean())
    assert absolute.item() * share == pytest.approx(float(golden[f"{name}.l1"]), rel=TOLERANCE)
    assert divergence.item() == pytest.approx(float(golden[f"{name}.kl"]), rel=TOLERANCE)
    theirs = absolute * share + made.config.kl_weight * divergence
    assert theirs.item() == pytest.approx(float(golden[f"{name}.loss"]), rel=TOLERANCE)
    (gradient,) = torch.autograd.grad(theirs, made.action_head.weight, retain_graph=True)
    close(gradient, golden[f"{name}.gradient"])
    assert whole.item() == pytest.approx((absolute + made.config.kl_weight * divergence).item())


def test_ensembling_equals_lerobots_over_200_steps(golden: dict[str, Any]) -> None:
    ensemble = TemporalEnsemble(0.01, COMMON["chunk_size"])
    ours = np.stack([ensemble.mean(chunk)[0] for chunk in numbers("ensemble", (200, COMMON["chunk_size"], JOINTS))])
    assert np.abs(ours - golden["ensemble"]).max() < 1e-5  # LeRobot's running mean is float32
    ensemble.reset()
    first = numbers("ensemble", (200, COMMON["chunk_size"], JOINTS))[0]
    np.testing.assert_array_equal(ensemble.mean(first), first)


def test_chunks_that_begin_some_actions_apart_are_averaged_moment_by_moment() -> None:
    chunks, m = numbers("apart", (3, 6, 2)).astype(np.float64), 0.1
    ensemble = TemporalEnsemble(m, 6)
    for chunk, ticks in zip(chunks, (1, 2, 3)):
        found = ensemble.mean(chunk, ticks)
    weight = np.exp(-m * np.arange(3))
    # Tick 5 is row 5, 3 and 0 of the three chunks; tick 6 of the last two; tick 8 is planned by the last alone.
    plans = np.stack([chunks[0][5], chunks[1][3], chunks[2][0]])
    np.testing.assert_allclose(found[0], weight @ plans / weight.sum())
    np.testing.assert_allclose(found[1], weight[:2] @ np.stack([chunks[1][4], chunks[2][1]]) / weight[:2].sum())
    np.testing.assert_array_equal(found[3:], chunks[2][3:])
    with pytest.raises(ValueError, match="begins 0 actions"):
        ensemble.mean(chunks[0], 0)


def test_a_chunk_that_begins_between_two_actions_is_averaged_with_what_lies_between_them() -> None:
    line = np.arange(6.0)[:, None] * np.array([1.0, -2.0])
    ensemble = TemporalEnsemble(0.1, 6)
    ensemble.mean(line)
    # The same line, a third of an action later: the mean of a plan with itself, to the end of both.
    np.testing.assert_allclose(ensemble.mean(line + [1 / 3, -2 / 3], 1 / 3), line + [1 / 3, -2 / 3])
    found = ensemble.mean(line + 10, 2.5)
    weight = np.exp(-0.1 * np.arange(3))
    np.testing.assert_allclose(found[0, 0], weight @ [2.5 + 1 / 3, 2.5 + 1 / 3, 10] / weight.sum())
    np.testing.assert_array_equal(found[3:], (line + 10)[3:])


def test_tokens_of_a_picture_can_be_kept_while_it_stays_the_same() -> None:
    made = network("resnet18")
    given = {key: torch.from_numpy(value) for key, value in inputs().items()}
    with torch.no_grad():
        kept = [made.encode_picture(given[camera]) for camera in CAMERAS]
        moved = given["state"] + 0.5
        assert torch.equal(made.decode(kept, moved), made([given[camera] for camera in CAMERAS], moved))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"vision_backbone": "vit"}, "resnet18"),
        ({"replace_final_stride_with_dilation": True}, "resnet50"),
        ({"feedforward_activation": "glu"}, "relu"),
        ({"n_action_steps": 30}, "chunk_size"),
        ({"temporal_ensemble_coeff": 0.01}, "must be 1"),
        ({"dim_model": 66}, "multiple of 4"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ACT(ACTConfig(INPUTS, OUTPUTS, **{**COMMON, **fields}))
