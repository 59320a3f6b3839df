# SPDX-License-Identifier: Apache-2.0
"""A world small enough to be learnt on a CPU: the picture shows coloured squares, the text names one, the action is a
step towards it. Two layers each, 64-pixel pictures, a tokenizer built here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.random_policy import new_policy

from vla_edge.lerobot_data.layout import Feature
from vla_edge.lerobot_data.writer import DatasetWriter
from vla_edge.policies.checkpoint import MODEL_FILE, write_weights
from vla_edge.policies.checkpoint_folder import VLM_FOLDER
from vla_edge.policies.processing import default_processing
from vla_edge.policies.processor_files import write_processors
from vla_edge.policies.smolvla.backbone import read_backbone
from vla_edge.policies.smolvla.config import config_from_json, write_config
from vla_edge.policies.smolvla.new_policy import round_to_published, write_vlm
from vla_edge.training.progress import Report
from vla_edge.training.run_config import OptimizerConfig, TaskData, TrainConfig, with_settings
from vla_edge.training.runs import fine_tune, resume

CAMERA = "observation.images.top"
MODEL = "checkpoints/last/pretrained_model/model.safetensors"
"""The weights in a run's folder."""
ACCELERATE_LAUNCH = [
    "-m",
    "accelerate.commands.launch",
    "--multi_gpu",
    "--num_processes",
    "2",
    "--main_process_port",
    "0",
]
"""What docs/training.md tells to write before the program; with `--device cpu` it starts two processes of a CPU."""
SIZE = 64
CHUNK = 1
STEP = 0.25
COLOURS = {"red": (230, 40, 40), "blue": (50, 80, 230), "green": (40, 200, 60), "yellow": (230, 220, 50)}

BACKBONE: dict[str, Any] = {
    "scale_factor": 2,
    "text_config": {
        "vocab_size": 512,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 128,
        "rms_norm_eps": 1e-05,
    },
    "vision_config": {
        "hidden_size": 48,
        "num_attention_heads": 3,
        "num_hidden_layers": 2,
        "intermediate_size": 96,
        "image_size": 64,
        "patch_size": 16,
    },
}


@dataclass(frozen=True)
class World:
    """One dataset to write. `colours`: squares in every picture; `named`: those that instructions name.
    `shuffled`: instructions say nothing about the action. `direction` -1 steps away from the square."""

    episodes: int = 40
    length: int = 8
    seed: int = 0
    colours: tuple[str, ...] = ("red", "blue")
    named: tuple[str, ...] = ("red", "blue")
    shuffled: bool = False
    direction: int = 1
    background: int = 30
    text: str = "{}"
    video: bool = False
    dims: int = 2


def write_policy(folder: Path, seed: int = 0, dtype: str = "float32", **fields: Any) -> Path:
    """A random policy of two layers for this world, in LeRobot's layout."""
    folder.mkdir(parents=True)
    write_vlm(folder / VLM_FOLDER, BACKBONE)
    content = {
        "type": "smolvla",
        "input_features": {
            "observation.state": {"type": "STATE", "shape": [2]},
            CAMERA: {"type": "VISUAL", "shape": [3, SIZE, SIZE]},
        },
        "output_features": {"action": {"type": "ACTION", "shape": [2]}},
        "vlm_model_name": VLM_FOLDER,
        "pad_language_to": "max_length",
        "tokenizer_max_length": 16,
        "resize_imgs_with_padding": [SIZE, SIZE],
        "num_vlm_layers": 2,
        "chunk_size": CHUNK,
        "n_action_steps": CHUNK,
        "max_state_dim": 8,
        "max_action_dim": 8,
        "load_vlm_weights": False,
        **fields,
    }
    config = config_from_json(content, "tiny policy")
    plain = {"mean": np.zeros(2, np.float32), "std": np.ones(2, np.float32)}
    settings = default_processing(folder, config, {"observation.state": plain, "action": plain})
    policy = new_policy(config, read_backbone(folder / VLM_FOLDER), settings, seed)
    types = round_to_published(policy) if dtype == "bfloat16" else {}
    write_config(folder, config)
    write_processors(folder, config, settings)
    write_weights(policy, folder / MODEL_FILE, types)
    return folder


def write_data(folder: Path, world: World) -> Path:
    """A v3.0 dataset of `world`: one scene an episode, and in every frame a new pose near the middle, a newly named
    square and sensor noise, so that neither the pose nor the last action betrays the target."""
    kind = "video" if world.video else "image"
    joints = [f"joint_{i}" for i in range(world.dims)]
    features = {
        "observation.state": Feature("float32", (world.dims,), joints),
        "action": Feature("float32", (world.dims,), joints),
        CAMERA: Feature(kind, (SIZE, SIZE, 3), ["height", "width", "channels"]),
    }
    generator = np.random.default_rng(world.seed)
    with DatasetWriter(folder, 10, features) as writer:
        for _ in range(world.episodes):
            places = scatter(generator, len(world.colours))
            clean = draw(places, world.colours, world.background).astype(np.int16)
            for _ in range(world.length):
                colour = str(generator.choice(world.named))
                said = str(generator.choice(world.named)) if world.shuffled else colour
                position = generator.uniform(-0.1, 0.1, 2)
                way = places[world.colours.index(colour)] - position
                step = STEP * way / np.linalg.norm(way) * world.direction
                noise = generator.integers(-2, 3, clean.shape)
                writer.add_frame(
                    {
                        "observation.state": widen(position, world.dims),
                        "action": widen(step, world.dims),
                        CAMERA: np.clip(clean + noise, 0, 255).astype(np.uint8),
                    },
                    task=world.text.format(said),
                )
            writer.save_episode()
    return folder


def scatter(generator: np.random.Generator, count: int) -> NDArray[np.float64]:
    """`count` places [count, 2] evenly round the middle, the first colour somewhere on the left: without the
    instruction
    the best guess is to stay, without the picture the height is unknown."""
    angles = np.pi + generator.uniform(-0.8, 0.8) + np.arange(count) * 2 * np.pi / count
    return generator.uniform(0.5, 0.75) * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def draw(places: NDArray[np.float64], colours: Sequence[str], background: int = 30) -> NDArray[np.uint8]:
    """uint8 [64, 64, 3]: a square of 14 pixels per place; x to the right, y down."""
    picture = np.full((SIZE, SIZE, 3), background, np.uint8)
    for (x, y), colour in zip(places, colours):
        column, row = (int(round((v + 1) / 2 * (SIZE - 1))) for v in (x, y))
        picture[max(row - 7, 0) : row + 7, max(column - 7, 0) : column + 7] = COLOURS[colour]
    return picture


def widen(values: NDArray[np.float64], dims: int) -> NDArray[np.float32]:
    """Two real values repeated to `dims` joints."""
    return np.resize(values, dims).astype(np.float32)


def one_thread() -> None:
    torch.set_num_threads(1)


def two_steps(world: Path, out: Path, *settings: str, **changes: Any) -> TrainConfig:
    """A run of two logged steps on `world`; settings as `--set` takes them, changes as fields."""
    values: dict[str, Any] = {"steps": 2, "batch_size": 4, "save_every": 2, "log_every": 1, "validation_frames": 8}
    values |= {"policy": str(world / "policy"), "data": (TaskData("data", str(world / "data")),), "device": "cpu"}
    values |= {"optimizer": OptimizerConfig(lr=1e-3)} | changes
    return with_settings(TrainConfig(output=str(out), **values), settings)


def interrupt_at(last: int) -> Report:
    """A report that stops the run as Ctrl-C would, after `last` optimiser steps."""

    def report(step: int, loss: float, lr: float, seconds_per_step: float) -> None:
        if step == last:
            raise KeyboardInterrupt

    return report


def check_resume_with_and_without(config: Callable[..., TrainConfig], option: str, folder: Path) -> None:
    """A run whose `option` names a cache, ended after four steps, resumes to the same bytes with its cache and without
    it. config(out, **changes) makes a run of more than four steps that saves after three."""

    def cached(out: str, cache: str) -> TrainConfig:
        return config(folder / out, **{option: str(folder / cache)})

    fine_tune(cached("whole", "cache"))
    for name in ("kept", "lost"):
        with pytest.raises(KeyboardInterrupt):
            fine_tune(cached(name, f"cache_{name}"), interrupt_at(4))
        if name == "lost":
            (folder / "cache_lost").rename(folder / "elsewhere")
        resume(folder / name)
        assert (folder / "whole" / MODEL).read_bytes() == (folder / name / MODEL).read_bytes()
