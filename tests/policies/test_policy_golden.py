# SPDX-License-Identifier: Apache-2.0
"""The PyTorch policy reproduces every array that LeRobot 0.4.4 recorded, stage by stage.

Tolerance: 1e-5 of the stage's largest value, float32 (different but equivalent orders of summation give about 1e-6).
Stages are fed from our own earlier stages, except the suffix, which is fed the recorded x_t so that each Euler step is
judged by itself; the whole chunk is judged again at the end. A GELU mistake moves the final actions by only 7e-5,
which is why the stages are compared.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from vla_edge.policies.smolvla.policy import SmolVLAPolicy

HERE = Path(__file__).parents[1] / "golden"
SHARED = Path(__file__).parents[3] / "shared" / "golden"
TOLERANCE = 1e-5
META = {"meta", "raw/task", "raw/state", "steps/time", "noise"}


def golden_names() -> list:
    skip = pytest.mark.skipif(
        not (SHARED / "koch-float32.npz").is_file(), reason="koch-float32 lies in ../shared/golden, which is not here"
    )
    return [
        pytest.param(HERE / "koch-bfloat16", id="koch-bfloat16"),
        pytest.param(SHARED / "koch-float32", id="koch-float32", marks=skip),
    ]


@pytest.fixture(scope="module", params=golden_names())
def case(request: pytest.FixtureRequest) -> tuple[SmolVLAPolicy, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The policy, the recorded arrays and ours under the same names."""
    torch.set_num_threads(1)
    folder: Path = request.param
    policy = SmolVLAPolicy.from_pretrained(folder)
    with np.load(folder.parent / f"{folder.name}.npz") as content:
        recorded = {name: content[name] for name in content.files}
    return policy, recorded, compute(policy, recorded)


@torch.no_grad()
def compute(policy: SmolVLAPolicy, recorded: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    ours: dict[str, torch.Tensor] = {}
    observation = {
        name.removeprefix("raw/image/"): value for name, value in recorded.items() if name.startswith("raw/image/")
    }
    batch = policy.preprocess(
        {**observation, "observation.state": recorded["raw/state"], "task": str(recorded["raw/task"])}
    )
    inputs, model = policy.prepare(batch), policy.model
    vlm = model.vlm_with_expert.vlm.model
    ours |= {"tokens/ids": inputs.token_ids, "tokens/mask": inputs.token_mask, "state/padded": inputs.state}
    ours["state/normalized"] = batch["observation.state"]
    side = vlm.vision_model.embeddings.side
    ours["vision/position_ids"] = vlm.vision_model.embeddings.position_ids(side, side)
    for index, (image, present) in enumerate(zip(inputs.images, inputs.image_masks, strict=True)):
        hidden = vlm.vision_model(image)
        ours |= {f"images/{index}": image, f"images/mask/{index}": present}
        ours |= {f"vision/last_hidden/{index}": hidden, f"vision/connector/{index}": vlm.connector(hidden)}
    rows, mask = model.embed_prefix(
        model.embed_images(inputs.images), inputs.image_masks, inputs.token_ids, inputs.token_mask
    )
    embedded, padded, block = model.with_state(rows, mask, model.embed_state(inputs.state))
    ours |= {"prefix/embs": embedded, "prefix/pad_mask": padded, "prefix/att_mask": block}
    ours |= {"prefix/att_2d": model.visible_together(padded, block), "prefix/position_ids": padded.cumsum(1) - 1}
    prefix = model.run_together(rows, mask, inputs.state)
    ours["prefix/out"] = vlm.text_model.norm(prefix.hidden)
    for index, cache in enumerate(prefix.cache):
        ours |= {f"kv/{index}/k": cache.key, f"kv/{index}/v": cache.value}
    chunk = policy.config.chunk_size
    causal = torch.ones(chunk, chunk, dtype=torch.bool).tril()[None]
    ours["suffix/att_2d"] = torch.cat((prefix.mask[:, None].expand(-1, chunk, -1), causal), dim=2)
    ours["suffix/position_ids"] = prefix.mask.sum(1, keepdim=True) + torch.arange(chunk)[None]
    velocities = []
    for step, (x_t, time) in enumerate(zip(recorded["steps/x_t"], recorded["steps/time"], strict=True)):
        at, when = torch.from_numpy(x_t), torch.full((1,), float(time))
        ours[f"suffix/{step}/embs"] = model.embed_suffix(at, when)
        velocities.append(model.denoise_step(prefix, at, when))
    ours["steps/v_t"] = torch.stack(velocities)
    walk = [torch.from_numpy(recorded["noise"])]
    for step in range(policy.config.num_steps):
        time = torch.full((1,), 1.0 - step / policy.config.num_steps, dtype=torch.float32)
        walk.append(walk[-1] - model.denoise_step(prefix, walk[-1], time) / policy.config.num_steps)
    ours |= {
        "steps/x_t": torch.stack(walk[:-1]),
        "steps/x_final": model.integrate(prefix, walk[0], policy.config.num_steps),
    }
    actions = policy.predict_action_chunk(batch, walk[0])
    assert isinstance(actions, torch.Tensor)
    ours |= {"actions/normalized": actions, "actions/final": policy.postprocess(actions)}
    return {name: value.numpy() for name, value in ours.items()}


def test_every_recorded_array_is_reproduced_from_the_raw_images_and_the_task(case) -> None:
    _, recorded, ours = case
    wanted = {name for name in recorded if name not in META and not name.startswith("raw/image/")}
    assert wanted == set(ours)
    wrong = []
    for name in sorted(wanted):
        expected, got = recorded[name], ours[name]
        assert got.shape == expected.shape, name
        if expected.dtype == bool or expected.dtype.kind == "i":
            if not np.array_equal(got, expected):
                wrong.append(f"{name}: not equal")
            continue
        error = np.abs(got.astype(np.float64) - expected).max() / max(np.abs(expected).max(), 1e-12)
        if not error <= TOLERANCE:
            wrong.append(f"{name}: {error:.2e}")
    assert not wrong


def test_the_flow_uses_the_recorded_times_bit_for_bit(case) -> None:
    policy, recorded, _ = case
    steps = policy.config.num_steps
    times = torch.stack([torch.full((), 1.0 + step * (-1.0 / steps), dtype=torch.float32) for step in range(steps)])
    assert np.array_equal(times.numpy(), recorded["steps/time"])


def test_an_exact_gelu_in_the_vision_tower_is_caught_by_the_stages(case, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, recorded, ours = case
    plain = torch.nn.functional.gelu
    monkeypatch.setattr(torch.nn.functional, "gelu", lambda x, approximate: plain(x))
    with torch.no_grad():
        hidden = policy.model.vlm_with_expert.vlm.model.vision_model(torch.from_numpy(ours["images/0"])).numpy()
    expected = recorded["vision/last_hidden/0"]
    assert np.abs(hidden - expected).max() / np.abs(expected).max() > 3 * TOLERANCE


def test_the_types_of_the_file_are_kept_in_mind(case) -> None:
    policy, recorded, _ = case
    mixed = json.loads(str(recorded["meta"]))["checkpoint"] == "koch-bfloat16"
    types = policy.stored_types
    assert types["model.state_proj.weight"] == torch.float32
    assert types["model.vlm_with_expert.lm_expert.layers.1.self_attn.k_proj.weight"] == torch.float32
    assert types["model.vlm_with_expert.lm_expert.layers.0.self_attn.k_proj.weight"] == (
        torch.bfloat16 if mixed else torch.float32
    )
    assert all(parameter.dtype == torch.float32 for parameter in policy.parameters())
