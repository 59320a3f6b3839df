# SPDX-License-Identifier: Apache-2.0
"""What LeRobot reads of a bundle: config.json and two processor files, for the plug-in in integrations/lerobot.

The bundle normalises, tokenises and un-normalises itself, so the processors only rename, add the batch's axis and move
to a device. The names of the steps are those that LeRobot's commands override.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vla_edge.bundle import CameraSpec, PolicySpec
from vla_edge.policies.checkpoint_folder import write_json
from vla_edge.policies.features import ACTION, STATE

LEROBOT_FILES = ("config.json", "policy_preprocessor.json", "policy_postprocessor.json")


def write_lerobot_files(folder: Path, policy: PolicySpec, cameras: tuple[CameraSpec, ...]) -> None:
    """Write `LEROBOT_FILES` into the bundle."""
    pictures = {camera.name: {"type": "VISUAL", "shape": [3, camera.height, camera.width]} for camera in cameras}
    config = {
        "type": "vla_edge",
        "n_obs_steps": 1,
        "input_features": {STATE: {"type": "STATE", "shape": [policy.state_dim]}, **pictures},
        "output_features": {ACTION: {"type": "ACTION", "shape": [policy.action_dim]}},
        "device": "cpu",
        "use_amp": False,
        "push_to_hub": False,
        "chunk_size": policy.chunk_size,
        "n_action_steps": policy.n_action_steps,
    }
    device = {"registry_name": "device_processor", "config": {"device": "cpu", "float_dtype": None}}
    before: list[dict[str, Any]] = [
        {"registry_name": "rename_observations_processor", "config": {"rename_map": {}}},
        {"registry_name": "to_batch_processor", "config": {}},
        device,
    ]
    content: tuple[dict[str, Any], ...] = (
        config,
        {"name": "policy_preprocessor", "steps": before},
        {"name": "policy_postprocessor", "steps": [device]},
    )
    for name, value in zip(LEROBOT_FILES, content):
        write_json(folder / name, value)
