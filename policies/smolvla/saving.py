"""Writing a policy folder in LeRobot's layout, self-contained: the backbone's and tokenizer's files go to `vlm/`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from vla_edge.errors import CheckpointError
from vla_edge.policies.processing import POSTPROCESSOR, PREPROCESSOR, ProcessorSettings
from vla_edge.policies.smolvla.backbone import VLM_FOLDER
from vla_edge.policies.smolvla.config import SmolVLAConfig, config_to_json

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".onnx")


def write_config(folder: Path, config: SmolVLAConfig) -> None:
    """Write `folder/config.json`."""
    _write_json(folder / "config.json", config_to_json(config))


def write_processors(folder: Path, config: SmolVLAConfig, settings: ProcessorSettings) -> None:
    """Write both processor files and their statistics, with LeRobot 0.4.4's step order and file names."""
    inputs = {item.name: item for item in (*config.input_features, *config.output_features)}
    outputs = {item.name: item for item in config.output_features}
    tokenizer = settings.tokenizer
    device = {"registry_name": "device_processor", "config": {"device": "cpu", "float_dtype": None}}
    before: list[dict[str, Any]] = [
        {"registry_name": "rename_observations_processor", "config": {"rename_map": dict(settings.rename_map)}},
        {"registry_name": "to_batch_processor", "config": {}},
    ]
    if tokenizer.append_newline:
        before.append({"registry_name": "smolvla_new_line_processor", "config": {}})
    before.append(
        {
            "registry_name": "tokenizer_processor",
            "config": {
                "max_length": tokenizer.max_length,
                "task_key": "task",
                "padding_side": tokenizer.padding_side,
                "padding": tokenizer.padding,
                "truncation": True,
                "tokenizer_name": tokenizer.name,
            },
        }
    )
    before.append(device)
    _write_pipeline(folder, PREPROCESSOR, [*before, _normalizer("normalizer_processor", inputs, settings)], settings)
    _write_pipeline(folder, POSTPROCESSOR, [_normalizer("unnormalizer_processor", outputs, settings), device], settings)


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


def _normalizer(name: str, features: dict[str, Any], settings: ProcessorSettings) -> dict[str, Any]:
    return {
        "registry_name": name,
        "config": {
            "eps": settings.eps,
            "features": {item.name: {"type": item.kind, "shape": list(item.shape)} for item in features.values()},
            "norm_map": dict(settings.normalization_mapping),
        },
    }


def _write_pipeline(folder: Path, name: str, steps: list[dict[str, Any]], settings: ProcessorSettings) -> None:
    written = []
    for index, step in enumerate(steps):
        if step["registry_name"] in ("normalizer_processor", "unnormalizer_processor") and settings.statistics:
            file = f"{name}_step_{index}_{step['registry_name']}.safetensors"
            flat = {
                f"{feature}.{key}": np.ascontiguousarray(value)
                for feature, values in settings.statistics.items()
                for key, value in values.items()
            }
            save_file(flat, folder / file)
            step = {**step, "state_file": file}
        written.append(step)
    _write_json(folder / f"{name}.json", {"name": name, "steps": written})


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")
