# SPDX-License-Identifier: Apache-2.0
"""Save the golden ACT policies as LeRobot lays them out, without weights, and keep what it makes of raw pictures.

python make_folders.py OUT      in an environment with lerobot (0.4.4 and 0.6.1 were used)
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs.types import FeatureType, NormalizationMode, PolicyFeature
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.modeling_act import ACTPolicy
from lerobot.policies.factory import make_pre_post_processors

sys.path.insert(0, str(Path(__file__).parent))
from numbers_of_act import CAMERAS, COMMON, FOLDERS, JOINTS, SIZE, observations, statistics, weight


def _typed(name: str, value: Any) -> Any:
    return {k: NormalizationMode(v) for k, v in value.items()} if name == "normalization_mapping" else value


def main() -> None:
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    for name, changes in FOLDERS.items():
        config = ACTConfig(
            input_features={
                "observation.state": PolicyFeature(FeatureType.STATE, (JOINTS,)),
                **{f"observation.images.{c}": PolicyFeature(FeatureType.VISUAL, (3, *SIZE)) for c in CAMERAS},
            },
            output_features={"action": PolicyFeature(FeatureType.ACTION, (JOINTS,))},
            pretrained_backbone_weights=None,
            device="cpu",
            **{**COMMON, **{key: _typed(key, value) for key, value in changes.items()}},
        )
        policy = ACTPolicy(config)
        state = policy.state_dict()
        policy.load_state_dict(
            {k: v if k.endswith("pos_enc") else torch.from_numpy(weight(k, tuple(v.shape))) for k, v in state.items()}
        )
        given = {key: {k: torch.from_numpy(v) for k, v in values.items()} for key, values in statistics().items()}
        before, after = make_pre_post_processors(config, dataset_stats=given)
        folder = out / name
        for part in (policy, before, after):
            part.save_pretrained(folder)
        (folder / "model.safetensors").unlink()
        chunks, actions = [], []
        policy.reset()
        for raw in observations():
            made = {
                key: torch.from_numpy(value).permute(2, 0, 1).float() / 255
                if value.ndim == 3
                else torch.from_numpy(value)
                for key, value in raw.items()
            }
            batch = before(made)
            chunks.append(after(policy.predict_action_chunk(batch)[0]).numpy())
            actions.append(after(policy.select_action(batch))[0].numpy())
        np.savez_compressed(folder / "actions.npz", chunks=np.stack(chunks), actions=np.stack(actions))


if __name__ == "__main__":
    main()
