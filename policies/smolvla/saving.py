"""Writing a policy folder in LeRobot's layout, self-contained: the backbone's and tokenizer's files go to `vlm/`."""

from __future__ import annotations

import shutil
from pathlib import Path

from vla_edge.errors import CheckpointError
from vla_edge.policies.checkpoint_folder import VLM_FOLDER
from vla_edge.policies.processor_files import write_json
from vla_edge.policies.smolvla.config import SmolVLAConfig, config_to_json

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".onnx")


def write_config(folder: Path, config: SmolVLAConfig) -> None:
    """Write `folder/config.json`."""
    write_json(folder / "config.json", config_to_json(config))


def write_backbone(folder: Path, source: Path, tokenizer: Path) -> None:
    """Copy the backbone's files to `folder/vlm`, its weights left out, and the tokenizer's when it lies elsewhere.

    CheckpointError when they are no longer where the policy was loaded from."""
    for place, name in ((source, "config.json"), (tokenizer, "tokenizer.json")):
        if not (place / name).is_file():
            raise CheckpointError(
                f"{place / name}: gone since the policy was loaded; put it back to save a complete checkpoint"
            )
    target = folder / VLM_FOLDER
    target.mkdir()
    for place, pattern in ((source, "*"), (tokenizer, "tokenizer*.json")):
        for file in sorted(place.glob(pattern)):
            if file.is_file() and file.suffix not in _WEIGHTS:
                shutil.copyfile(file, target / file.name)
