# SPDX-License-Identifier: Apache-2.0
"""Randomly initialised policies in LeRobot's folder layout, with processors, statistics and a locally built tokenizer.

    python -m tests.random_policy --size tiny --out DIR

They plan nothing sensible: they exist so that the demo, tests and benchmarks
have a policy of the right form (tiny) or of the right form and size (full:
SmolVLA's 450 million parameters with the SmolVLM2-500M backbone's numbers).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vla_edge.command_line import run_command
from vla_edge.errors import CheckpointError, ConfigError
from vla_edge.files import new_folder
from vla_edge.policies.checkpoint import MODEL_FILE, write_weights
from vla_edge.policies.checkpoint_folder import VLM_FOLDER
from vla_edge.policies.features import ACTION, STATE
from vla_edge.policies.processing import ProcessorSettings, default_processing
from vla_edge.policies.processor_files import write_processors
from vla_edge.policies.smolvla.backbone import BackboneConfig, read_backbone
from vla_edge.policies.smolvla.config import SmolVLAConfig, config_from_json, write_config
from vla_edge.policies.smolvla.new_policy import round_to_published, write_vlm
from vla_edge.policies.smolvla.policy import SmolVLAPolicy

TINY: dict[str, Any] = {
    "backbone": {
        "scale_factor": 4,
        "text_config": {
            "vocab_size": 512,
            "hidden_size": 96,
            "num_hidden_layers": 6,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "intermediate_size": 192,
            "rms_norm_eps": 1e-05,
        },
        "vision_config": {
            "hidden_size": 48,
            "num_attention_heads": 3,
            "num_hidden_layers": 3,
            "intermediate_size": 96,
            "image_size": 128,
            "patch_size": 16,
        },
    },
    "config": {"num_vlm_layers": 4, "resize_imgs_with_padding": [128, 128]},
}
FULL: dict[str, Any] = {
    "backbone": {
        "scale_factor": 4,
        "text_config": {
            "vocab_size": 49280,
            "hidden_size": 960,
            "num_hidden_layers": 32,
            "num_attention_heads": 15,
            "num_key_value_heads": 5,
            "head_dim": 64,
            "intermediate_size": 2560,
            "rms_norm_eps": 1e-05,
        },
        "vision_config": {
            "hidden_size": 768,
            "num_attention_heads": 12,
            "num_hidden_layers": 12,
            "intermediate_size": 3072,
            "image_size": 512,
            "patch_size": 16,
        },
    },
    "config": {"num_vlm_layers": 16, "resize_imgs_with_padding": [512, 512]},
}
SIZES = {"tiny": TINY, "full": FULL}


@dataclass(frozen=True)
class RandomPolicy:
    """What to make. `config` overrides fields of config.json; `dtype` bfloat16 mixes types as published checkpoints
    do."""

    size: str = "tiny"
    seed: int = 0
    dtype: str = "float32"
    cameras: tuple[str, ...] = ("laptop", "phone")
    image_width: int = 640
    image_height: int = 480
    joints: int = 6
    cls: bool = False
    delta: bool = False
    rename_map: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)


def write_random_policy(folder: Path | str, make: RandomPolicy) -> None:
    """Write a new checkpoint folder; refuses an existing one. Deterministic in `make`."""
    with new_folder(folder, CheckpointError) as place:
        write_vlm(place / VLM_FOLDER, SIZES[make.size]["backbone"])
        config = config_from_json(_config_json(make), "random policy")
        settings = default_processing(place, config, _statistics(make), make.rename_map)
        policy = new_policy(config, read_backbone(place / VLM_FOLDER), settings, make.seed)
        types = round_to_published(policy) if make.dtype == "bfloat16" else {}
        write_config(place, config)
        write_processors(place, config, settings)
        write_weights(policy, place / MODEL_FILE, types)


def new_policy(
    config: SmolVLAConfig, backbone: BackboneConfig, settings: ProcessorSettings, seed: int
) -> SmolVLAPolicy:
    """A policy with random weights, each stage of which carries signal: linear maps keep the variance of their input,
    norms differ from one."""
    policy = SmolVLAPolicy(config, backbone, settings)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in policy.state_dict().items():
        if name.endswith("bias"):
            tensor.normal_(0.0, 0.1, generator=generator)
        elif tensor.ndim == 1:
            tensor.normal_(1.0, 0.1, generator=generator)
        elif name.endswith("cls_param"):
            tensor.normal_(0.0, 0.02, generator=generator)
        else:
            inputs = tensor.shape[1] if "embed" in name and tensor.ndim == 2 else tensor[0].numel()
            tensor.normal_(0.0, inputs**-0.5, generator=generator)
    if config.has_delta:
        experts = policy.model.vlm_with_expert
        experts.delta_expert.load_state_dict(experts.lm_expert.state_dict())
    return policy.eval()


def _config_json(make: RandomPolicy) -> dict[str, Any]:
    inputs: dict[str, Any] = {STATE: {"type": "STATE", "shape": [make.joints]}}
    inputs |= {
        f"observation.images.{name}": {"type": "VISUAL", "shape": [3, make.image_height, make.image_width]}
        for name in make.cameras
    }
    content = {
        "type": "smolvla",
        "input_features": inputs,
        "output_features": {ACTION: {"type": "ACTION", "shape": [make.joints]}},
        "vlm_model_name": VLM_FOLDER,
        "load_vlm_weights": False,
        "pad_language_to": "max_length",
        **SIZES[make.size]["config"],
    }
    if make.cls or make.delta:
        content |= {"use_cls_head": make.cls, "train_delta_expert": make.delta}
    if make.delta:  # as good as one that was trained, for what only looks at the mark
        content |= {"delta_target": "stale", "delta_relative_error": 0.5}
    return {**content, **make.config}


def _statistics(make: RandomPolicy) -> dict[str, dict[str, NDArray[np.float32]]]:
    """Plausible joint statistics in degrees."""
    generator = np.random.default_rng(make.seed)
    statistics = {}
    for feature in (STATE, ACTION):
        mean = generator.uniform(-40, 40, make.joints).astype(np.float32)
        std = generator.uniform(8, 25, make.joints).astype(np.float32)
        spread = {"mean": mean, "std": std, "min": mean - 3 * std, "max": mean + 3 * std}
        statistics[feature] = {**spread, "count": np.array([1000], np.float32)}
    return statistics


def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.random_policy", description="write a randomly initialised SmolVLA policy"
    )
    parser.add_argument("--out", required=True, type=Path, help="new folder")
    parser.add_argument("--size", choices=sorted(SIZES), default="tiny")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="bfloat16: mixed as published checkpoints"
    )
    parser.add_argument("--cameras", nargs="+", default=["laptop", "phone"], metavar="NAME")
    parser.add_argument("--image-size", nargs=2, type=int, default=[640, 480], metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--joints", type=int, default=6)
    parser.add_argument("--cls", action="store_true", help="with a CLS head")
    parser.add_argument("--delta", action="store_true", help="with a delta expert")
    parser.add_argument(
        "--rename", nargs=2, action="append", default=[], metavar=("SOURCE", "FEATURE"), help="rename_map entry"
    )
    parser.add_argument(
        "--set", nargs=2, action="append", default=[], metavar=("FIELD", "JSON"), help="a field of config.json"
    )
    arguments = parser.parse_args(argv)
    make = RandomPolicy(
        size=arguments.size,
        seed=arguments.seed,
        dtype=arguments.dtype,
        cameras=tuple(arguments.cameras),
        image_width=arguments.image_size[0],
        image_height=arguments.image_size[1],
        joints=arguments.joints,
        cls=arguments.cls,
        delta=arguments.delta,
        rename_map=dict(arguments.rename),
        config={name: _json_value(name, value) for name, value in arguments.set},
    )
    write_random_policy(arguments.out, make)
    print(f"{arguments.out}: {make.size} random policy, seed {make.seed}")
    return 0


def _json_value(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise ConfigError(f"--set {name}: {text!r} is not JSON; quote texts as '\"text\"'") from None


if __name__ == "__main__":
    sys.exit(run_command(main))
