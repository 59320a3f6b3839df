# SPDX-License-Identifier: Apache-2.0
"""LoRA folders that peft writes through LeRobot, merged here: against peft's own merge, and LeRobot's chunk with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.random_policy import RandomPolicy, write_random_policy

from vla_edge.policies.features import STATE
from vla_edge.policies.smolvla.policy import SmolVLAPolicy

Ask = Callable[..., dict[str, Any]]

PROJECTIONS = "state_proj|action_in_proj|action_out_proj|action_time_mlp_in|action_time_mlp_out"
USUAL = rf"(model\.vlm_with_expert\.lm_expert\..*\.(q|v)_proj|model\.({PROJECTIONS}))"
"""What LeRobot adapts in a SmolVLA unless told otherwise."""
SETTINGS: dict[str, dict[str, Any]] = {
    "as LeRobot does unless told otherwise": {"r": 16, "lora_alpha": 32, "target_modules": USUAL},
    "everything linear": {"r": 2, "target_modules": "all-linear"},
    "the whole state projection saved": {
        "r": 4,
        "target_modules": ["q_proj", "v_proj"],
        "modules_to_save": ["state_proj", "action_out_proj"],
    },
    "ranks and scales by module, rank-stabilised": {
        "r": 4,
        "lora_alpha": 6,
        "use_rslora": True,
        "target_modules": USUAL,
        "rank_pattern": {r".*lm_expert\.layers\.1\..*": 3, "state_proj": 2},
        "alpha_pattern": {"model.action_in_proj": 20, "q_proj": 5},
    },
    "biases trained with the adapters": {"r": 4, "target_modules": USUAL, "bias": "lora_only"},
    "all biases trained": {"r": 4, "target_modules": ["q_proj", "state_proj"], "bias": "all"},
    "some layers only": {"r": 4, "target_modules": ["down_proj"], "layers_to_transform": [0, 2]},
    "the vision tower's patches": {"r": 2, "target_modules": ["patch_embedding", "q_proj"]},
    "the words' embeddings": {"r": 2, "target_modules": ["embed_tokens", "q_proj"]},
}


SMALL = {"chunk_size": 8, "n_action_steps": 8, "num_steps": 2}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_lora_folder_is_what_peft_makes_of_it(name: str, dtype: str, lerobot: Ask, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    if not lerobot("versions")["peft"]:
        pytest.skip("LEROBOT_PYTHON has no peft")
    base, folder = tmp_path / "base", tmp_path / "adapter"
    write_random_policy(base, RandomPolicy(dtype=dtype, cameras=("laptop",), config=SMALL))
    lerobot("adapter", base=base, name="../base", out=folder, settings=SETTINGS[name], seed=3)
    for file in base.glob("policy_*"):
        (folder / file.name).write_bytes(file.read_bytes())

    policy = SmolVLAPolicy.from_pretrained(folder)
    rng = np.random.default_rng(1)
    seen: dict[str, Any] = {STATE: rng.normal(0, 20, 6).astype(np.float32), "task": "Pick up the cube"}
    seen["observation.images.laptop"] = rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)
    noise = torch.randn(1, 8, 32, generator=torch.Generator().manual_seed(2))
    given: dict[str, Any] = {"image/observation.images.laptop": seen["observation.images.laptop"], "state": seen[STATE]}
    np.savez(tmp_path / "seen.npz", **given, task=seen["task"], noise=noise.numpy())
    paths = {"inputs": tmp_path / "seen.npz", "out": tmp_path / "chunk.npz", "merged": tmp_path / "merged.safetensors"}
    lerobot("chunk", base=base, folder=folder, **paths)

    wanted, found = load_file(tmp_path / "merged.safetensors"), policy.state_dict()
    assert wanted.keys() == found.keys()
    for key, value in wanted.items():
        assert torch.allclose(found[key], value.float(), rtol=0, atol=1e-5 * float(value.abs().max())), key
    actions = policy.predict_action_chunk(policy.preprocess(seen), noise)
    assert isinstance(actions, torch.Tensor)
    with np.load(tmp_path / "chunk.npz") as content:
        theirs = content["actions"]
    assert np.abs(policy.postprocess(actions).numpy() - theirs).max() <= 1e-5 * np.abs(theirs).max()
