# SPDX-License-Identifier: Apache-2.0
"""A LoRA folder merged into the policy it adapts: W + scale · B A, in float32.

Names and settings are PEFT's (`adapter_config.json`, `adapter_model.safetensors`):
scale is alpha / r, or alpha / √r with `use_rslora`, each module's own where
`rank_pattern` or `alpha_pattern` matches; modules of `modules_to_save` and
trained biases replace the base's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vla_edge.errors import CheckpointError
from vla_edge.hub import is_id
from vla_edge.policies.checkpoint_folder import read_json, resolve_checkpoint

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILE = "adapter_model.safetensors"
_LORA = re.compile(
    r"(?P<module>.+)\.lora_(?:(?P<side>[AB])(?:\.default)?\.weight|embedding_(?P<of_words>[AB])(?:\.default)?)"
)


def base_folder(folder: Path, base: Path | None) -> Path:
    """The folder of the policy that the adapter in `folder` was trained on: `base`, or where the adapter says.

    CheckpointError when it is not on this machine.
    """
    if base is not None:
        return resolve_checkpoint(base)
    settings = read_json(folder / ADAPTER_CONFIG)
    name, revision = (str(settings.get(key) or "") for key in ("base_model_name_or_path", "revision"))
    missing = f"{folder}: a LoRA adapter of {name or 'a policy that it does not name'}, which is not on this machine"
    try:
        places = [folder / name, resolve_checkpoint(Path(name), revision if is_id(name) else "")] if name else []
    except CheckpointError as error:
        raise CheckpointError(f"{missing}: {error}; or give that policy's folder with --base DIR") from None
    for place in places:
        if (place / "config.json").is_file():
            return resolve_checkpoint(place)
    raise CheckpointError(f"{missing}; give that policy's folder with --base DIR")


def merged(
    base: Mapping[str, Tensor], adapter: Mapping[str, Tensor], settings: Mapping[str, Any], file: Path
) -> dict[str, Tensor]:
    """The base's tensors with the adapter's changes; adapter names without PEFT's prefix. CheckpointError names what
    `file` holds and this cannot merge."""
    if settings.get("peft_type") != "LORA" or settings.get("use_dora") or settings.get("fan_in_fan_out"):
        raise CheckpointError(
            f"{file}: peft_type {settings.get('peft_type')!r}, use_dora {settings.get('use_dora', False)}, "
            f"fan_in_fan_out {settings.get('fan_in_fan_out', False)}: only plain LoRA is merged here; merge it with "
            "peft's merge_and_unload"
        )
    tensors, sides = dict(base), {}
    for name, value in adapter.items():
        match = _LORA.fullmatch(name)
        if match:
            # Words' embeddings stand the other way round: A [rank, words], B [width, rank], weight [words, width].
            side, matrix = match["side"] or {"A": "B", "B": "A"}[match["of_words"]], value.float()
            sides[match["module"], side] = matrix if match["side"] else matrix.T
            continue
        plain = name.replace(".modules_to_save.", ".").replace(".default.", ".").replace(".base_layer.", ".")
        if plain not in base or base[plain].shape != value.shape:
            raise CheckpointError(
                f"{file}: tensor {name} fits nothing in the base policy; give its own base with --base"
            )
        tensors[plain] = value
    for module, _ in [key for key in sides if key[1] == "A"]:
        down, up, weight = sides[module, "A"], sides.get((module, "B")), base.get(f"{module}.weight")
        if up is None or weight is None or weight.shape != (len(up), *down.shape[1:]) or up.shape[1] != len(down):
            raise CheckpointError(
                f"{file}: the adapter of {module} fits no layer of the base policy; give its own base"
            )
        change = _scale(module, len(down), settings) * (up.flatten(1) @ down.flatten(1))  # a convolution's B is 1 × 1
        tensors[f"{module}.weight"] = weight.float() + change.reshape(weight.shape)
    return tensors


def _scale(module: str, rank: int, settings: Mapping[str, Any]) -> float:
    alpha = settings.get("lora_alpha", 8)
    for pattern, value in (settings.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = value
    return float(alpha) / (rank**0.5 if settings.get("use_rslora") else rank)
