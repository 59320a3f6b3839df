# SPDX-License-Identifier: Apache-2.0
"""Writing a checkpoint's processor files and statistics in LeRobot's layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from vla_edge.policies.checkpoint_folder import write_json
from vla_edge.policies.features import Feature, PolicyConfig, tables_json
from vla_edge.policies.processing import POSTPROCESSOR, PREPROCESSOR, ProcessorSettings


def write_processors(folder: Path, config: PolicyConfig, settings: ProcessorSettings) -> None:
    """Write both processor files and their statistics, with LeRobot 0.4.4's step order and file names."""
    outputs, inputs = config.output_features, (*config.input_features, *config.output_features)
    tokenizer = settings.tokenizer
    device = {"registry_name": "device_processor", "config": {"device": "cpu", "float_dtype": None}}
    before: list[dict[str, Any]] = [
        {"registry_name": "rename_observations_processor", "config": {"rename_map": dict(settings.rename_map)}},
        {"registry_name": "to_batch_processor", "config": {}},
    ]
    if tokenizer is not None and tokenizer.append_newline:
        before.append({"registry_name": "smolvla_new_line_processor", "config": {}})
    if tokenizer is not None:
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
    absolute: list[dict[str, Any]] = []
    if settings.relative is not None:
        names = {"exclude_joints": settings.relative.exclude_joints, "action_names": settings.relative.action_names}
        before.append({"registry_name": "relative_actions_processor", "config": {"enabled": True, **names}})
        absolute.append({"registry_name": "absolute_actions_processor", "config": {"enabled": True}})
    after = [_normalizer("unnormalizer_processor", outputs, settings), *absolute, device]
    _write_pipeline(folder, PREPROCESSOR, [*before, _normalizer("normalizer_processor", inputs, settings)], settings)
    _write_pipeline(folder, POSTPROCESSOR, after, settings)


def _normalizer(name: str, features: tuple[Feature, ...], settings: ProcessorSettings) -> dict[str, Any]:
    return {
        "registry_name": name,
        "config": {
            "eps": settings.eps,
            "features": tables_json(features),
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
    write_json(folder / f"{name}.json", {"name": name, "steps": written})
