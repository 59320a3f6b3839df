# SPDX-License-Identifier: Apache-2.0
"""Run transformers' Dinov2Model on weights made from names and keep what it computed.

python make_dinov2.py OUT.npz      in an environment with transformers (5.5.4 was used)
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import Dinov2Config, Dinov2Model

sys.path.insert(0, str(Path(__file__).parent))
from numbers_of_act import DINOV2_SIZES, DINOV2_WIDTH, dinov2_weight, numbers


def main() -> None:
    torch.set_num_threads(1)
    made = Dinov2Model(
        Dinov2Config(
            hidden_size=DINOV2_WIDTH, num_attention_heads=DINOV2_WIDTH // 64, num_hidden_layers=12, image_size=518
        )
    ).eval()
    state = made.state_dict()
    made.load_state_dict(
        {key: torch.from_numpy(dinov2_weight(key, tuple(value.shape))) for key, value in state.items()}
    )
    kept: dict[str, np.ndarray] = {
        "keys": np.array(sorted(f"{key} {list(value.shape)}" for key, value in state.items())),
        "transformers": np.array(transformers.__version__),
    }
    for size, every in DINOV2_SIZES.items():
        name = "x".join(map(str, size))
        with torch.no_grad():
            found = made(pixel_values=torch.from_numpy(numbers(name, (1, 3, *size))), output_hidden_states=True)
        kept[f"{name}.placed"] = found.hidden_states[0][0, ::every].numpy()
        kept[f"{name}.rows"] = found.last_hidden_state[0, ::every].numpy()
    np.savez_compressed(sys.argv[1], **kept)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
