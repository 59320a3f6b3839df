# SPDX-License-Identifier: Apache-2.0
"""Vision tower, connector and text layers equal transformers' own modules, where transformers is installed.

transformers is no dependency of the policies room; here it is a second opinion on what the golden data already show,
for weights and sizes of our own choosing.
"""

from __future__ import annotations

import pytest
import torch

transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-5  # of the largest value: float32 in another order of summation


def relative(ours: torch.Tensor, expected: torch.Tensor) -> float:
    assert ours.shape == expected.shape
    return ((ours - expected).abs().max() / expected.abs().max()).item()


@torch.no_grad()
@pytest.mark.parametrize("size", [128, 64])
def test_the_vision_tower_and_connector_equal_transformers(random_policy, size: int) -> None:
    modelling = pytest.importorskip("transformers.models.smolvlm.modeling_smolvlm")
    policy = random_policy()
    ours, vision = policy.model.vlm_with_expert.vlm.model, policy.backbone.vision
    config = transformers.SmolVLMVisionConfig(
        hidden_size=vision.hidden_size,
        intermediate_size=vision.mlp_size,
        num_hidden_layers=vision.layers,
        num_attention_heads=vision.heads,
        image_size=vision.image_size,
        patch_size=vision.patch_size,
    )
    theirs = modelling.SmolVLMVisionTransformer(config).eval()
    theirs.load_state_dict(ours.vision_model.state_dict(), strict=True)
    pixels = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    hidden = ours.vision_model(pixels)
    assert relative(hidden, theirs(pixel_values=pixels).last_hidden_state) < TOLERANCE
    both = transformers.SmolVLMConfig(
        vision_config=config.to_dict(),
        text_config={"model_type": "llama", "hidden_size": policy.backbone.text.hidden_size},
        scale_factor=4,
    )
    connector = modelling.SmolVLMConnector(both).eval()
    connector.load_state_dict(ours.connector.state_dict(), strict=True)
    assert relative(ours.connector(hidden), connector(hidden)) < TOLERANCE


@torch.no_grad()
def test_the_text_layers_equal_a_llama_with_rope_base_10000(random_policy) -> None:
    policy = random_policy()
    ours, text = policy.model.vlm_with_expert.vlm.model.text_model, policy.backbone.text
    config = transformers.LlamaConfig(
        vocab_size=text.vocab_size,
        hidden_size=text.hidden_size,
        intermediate_size=text.mlp_size,
        num_hidden_layers=len(ours.layers),
        num_attention_heads=text.heads,
        num_key_value_heads=text.kv_heads,
        head_dim=text.head_dim,
        rms_norm_eps=text.rms_norm_eps,
    )
    theirs = transformers.LlamaModel(config).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    rows = torch.randn(1, 9, text.hidden_size, generator=torch.Generator().manual_seed(0))
    causal = torch.ones(9, 9, dtype=torch.bool).tril()[None]
    hidden, _ = ours(rows, causal, torch.arange(9)[None])
    assert relative(ours.norm(hidden), theirs(inputs_embeds=rows).last_hidden_state) < TOLERANCE
