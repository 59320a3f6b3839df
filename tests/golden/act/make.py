# SPDX-License-Identifier: Apache-2.0
"""Run LeRobot's own ACT on the golden policies and keep what it computed.

python make.py OUT.npz      in an environment with lerobot (0.4.4 and 0.6.1 were used)
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.modeling_act import ACTPolicy, ACTTemporalEnsembler

sys.path.insert(0, str(Path(__file__).parent))
from numbers_of_act import CAMERAS, COMMON, JOINTS, POLICIES, inputs, numbers, weight


def policy(changes: dict[str, Any]) -> ACTPolicy:
    config = ACTConfig(
        input_features={
            "observation.state": PolicyFeature(FeatureType.STATE, (JOINTS,)),
            **{f"observation.images.{c}": PolicyFeature(FeatureType.VISUAL, (3, *s)) for c, s in CAMERAS.items()},
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (JOINTS,))},
        pretrained_backbone_weights=None,
        dropout=0.0,
        device="cpu",
        **{**COMMON, **changes},
    )
    made = ACTPolicy(config)
    state = made.state_dict()
    made.load_state_dict(
        {k: v if k.endswith("pos_enc") else torch.from_numpy(weight(k, tuple(v.shape))) for k, v in state.items()}
    )
    return made


def main() -> None:
    torch.set_num_threads(1)
    given = {name: torch.from_numpy(value) for name, value in inputs().items()}
    batch = {f"observation.images.{c}": given[c] for c in CAMERAS} | {
        "observation.state": given["state"], "action": given["actions"], "action_is_pad": given["is_pad"],
    }  # fmt: skip
    kept: dict[str, np.ndarray] = {}
    for name, changes in POLICIES.items():
        made = policy(changes)
        with torch.no_grad():
            features = made.model.backbone(next(given[camera] for camera in CAMERAS)[:1])["feature_map"]
        chunk = made.predict_action_chunk(batch)
        made.train()
        with patch("torch.randn_like", lambda _like: given["noise"]):
            loss, parts = made.forward(batch)
        gradient = torch.autograd.grad(loss, made.model.action_head.weight)[0]
        kept |= {
            f"{name}.keys": np.array(sorted(f"{k} {list(v.shape)}" for k, v in made.state_dict().items())),
            f"{name}.features": features.numpy(),
            f"{name}.chunk": chunk.numpy(),
            f"{name}.loss": np.float64(loss.item()),
            f"{name}.l1": np.float64(parts["l1_loss"]),
            f"{name}.kl": np.float64(parts.get("kld_loss", 0.0)),
            f"{name}.gradient": gradient.numpy(),
        }
    ensemble = ACTTemporalEnsembler(0.01, COMMON["chunk_size"])
    chunks = numbers("ensemble", (200, COMMON["chunk_size"], JOINTS))
    kept["ensemble"] = np.stack([ensemble.update(torch.from_numpy(chunk)[None])[0].numpy() for chunk in chunks])
    kept["divides_by_valid"] = np.array("num_valid" in inspect.getsource(ACTPolicy.forward))
    np.savez_compressed(sys.argv[1], **kept)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
