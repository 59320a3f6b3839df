# SPDX-License-Identifier: Apache-2.0
"""Train the reaching policy as an ACT: one small policy per colour, since ACT reads no task.

    python -m vla_edge.trials.reach_act --dataset DATASET --out FOLDER

FOLDER holds a checkpoint per colour afterwards. They are one network: it trains with the colour as three numbers beside
the joints (one of them 1), and in the policy of a colour these numbers never change, so their weights are added to the
bias of the joints' projection, which is the same arithmetic. Everything is counted in steps, as in `reach_policy`, and
begins as there with a warm-up: a linear map of all picture tokens regresses where each colour's chunk ends, without
which the ResNet takes long to see a cube at all. Its loss stays beside the chunks' and the map is not saved.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from vla_edge.command_line import run_command
from vla_edge.errors import CheckpointError
from vla_edge.files import new_folder
from vla_edge.lerobot_data.reader import open_dataset
from vla_edge.policies.act.config import ACTConfig, config_from_json
from vla_edge.policies.act.new_policy import IMAGENET, new_act
from vla_edge.policies.act.policy import ACTPolicy
from vla_edge.policies.act.resnet import FrozenBatchNorm
from vla_edge.policies.features import STATE, Feature
from vla_edge.policies.processing import ProcessorSettings, default_processing
from vla_edge.training.progress import live_line
from vla_edge.training.statistics import chosen_statistics
from vla_edge.trials.reach_data import CHUNK, CUBE_COLOURS
from vla_edge.trials.reach_examples import Examples, read_examples
from vla_edge.trials.reach_policy import POLICY
from vla_edge.trials.reach_recipe import (
    AnyRecipe,
    average_into,
    cosine,
    descend,
    error_facts,
    held_out_picks,
    ramp,
    run_recipe,
    timed_steps,
)

ACT_POLICY: Mapping[str, Any] = {
    "type": "act",
    "chunk_size": CHUNK,
    "n_action_steps": 25,
    "vision_backbone": "resnet18",
    "backbone_width": 12,
    "pretrained_backbone_weights": None,
    "dim_model": 96,
    "n_heads": 4,
    "dim_feedforward": 160,
    "n_encoder_layers": 2,
    "use_vae": False,
    "dropout": 0.0,
    "input_features": POLICY["input_features"],
    "output_features": POLICY["output_features"],
}
"""No VAE: the expert has one way for a picture and a colour, so there is nothing for a latent to tell apart."""


Seen = list[tuple[Tensor, Tensor]]
"""Of each camera its picture's tokens [B, N, D] and their positions."""


@dataclass(frozen=True, slots=True)
class ACTRecipe(AnyRecipe):
    """Steps, batch (observations a step, each with all three colours) and learning rate."""

    warmup_steps: int = 600
    steps: int = 1000
    batch: int = 32
    lr: float = 1e-3


def train(dataset: Path, out: Path, recipe: ACTRecipe) -> dict[str, float]:
    """Train on the dataset and write the checkpoints `out`/COLOUR; `out` must not exist. Returns what was measured.

    Errors: DatasetError, CheckpointError, TrainingError when the loss stops being finite.
    """
    torch.set_num_threads(recipe.threads)
    start = time.monotonic()
    with new_folder(out, CheckpointError) as place, open_dataset(dataset) as data:
        config = config_from_json(dict(ACT_POLICY), "reaching policy")
        by_channel = {name: np.array(values, np.float32).reshape(3, 1, 1) for name, values in IMAGENET.items()}
        statistics = {**chosen_statistics([data], "first"), **{camera.name: by_channel for camera in config.cameras}}
        settings = default_processing(dataset, config, statistics)
        examples = read_examples(data, settings, None, recipe.held_out_scenes)
        policy = new_act(told_the_colour(config), settings, "", recipe.seed)
        calibrate_norms(policy, examples.images[: recipe.batch])
        _train(policy, examples, recipe)
        result = {
            **held_out_error(policy, examples),
            "seconds": time.monotonic() - start,
            "parameters": float(sum(value.numel() for value in policy.parameters())),
        }
        for colour in CUBE_COLOURS:
            one_colour(policy, config, settings, colour).save_pretrained(place / colour)
    return result


def told_the_colour(config: ACTConfig) -> ACTConfig:
    """The configuration with the three numbers of the colour behind the joints."""
    wide = Feature(STATE, "STATE", (config.state_dim + len(CUBE_COLOURS),))
    return replace(config, input_features=tuple(wide if item.name == STATE else item for item in config.input_features))


def one_colour(whole: ACTPolicy, config: ACTConfig, settings: ProcessorSettings, colour: str) -> ACTPolicy:
    """The policy of one colour: its column of the joints' projection added to the bias. Weights are stored in
    float16, which holds them to 1 part in 2000."""
    tensors = dict(whole.state_dict())
    name = "model.encoder_robot_state_input_proj"
    columns, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
    tensors[f"{name}.weight"] = columns[:, : config.state_dim]
    tensors[f"{name}.bias"] = bias + columns[:, config.state_dim + CUBE_COLOURS.index(colour)]
    policy = ACTPolicy(config, settings)
    policy.load_state_dict({key: value.half().float() for key, value in tensors.items()})
    policy.stored_types = dict.fromkeys(tensors, torch.float16)
    return policy.eval()


@torch.no_grad()
def calibrate_norms(policy: ACTPolicy, images: Tensor) -> None:
    """Give every batch norm of a random ResNet the statistics of these pictures, uint8 [N, cameras, 3, h, w], one norm
    after the other. Without them its layers begin with activations of any size."""

    def measure(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        assert isinstance(norm, FrozenBatchNorm)
        norm.running_mean.copy_(inputs[0].mean((0, 2, 3)))
        norm.running_var.copy_(inputs[0].var((0, 2, 3)))

    hooks = [
        module.register_forward_pre_hook(measure)
        for module in policy.model.backbone.modules()
        if isinstance(module, FrozenBatchNorm)
    ]
    policy.model.backbone(torch.cat(_pictures(policy, images)))
    for hook in hooks:
        hook.remove()


def _train(policy: ACTPolicy, examples: Examples, recipe: ACTRecipe) -> None:
    """Ends with the averaged weights in the policy."""
    policy.train()
    generator = torch.Generator().manual_seed(recipe.seed)
    tokens, chunks = sum(seen.shape[1] for seen, _ in _seen(policy, examples, torch.arange(1))), examples.chunks
    head = nn.Linear(tokens * policy.config.dim_model, chunks[0, :, -1].numel())
    weights: dict[str, Tensor] = dict(policy.model.named_parameters())
    for name, module in policy.model.named_modules():
        # A ResNet that nobody has trained learns its norms' scale and shift too, which the checkpoint calls buffers.
        if isinstance(module, FrozenBatchNorm):
            weights |= {f"{name}.{key}": getattr(module, key).requires_grad_() for key in ("weight", "bias")}
    parameters = [*weights.values(), *head.parameters()]

    def ends(seen: Seen, picks: Tensor) -> Tensor:
        """Loss of the warm-up: where the chunks of all colours end, from the picture tokens alone."""
        found = head(torch.cat([tokens for tokens, _ in seen], 1).flatten(1))
        return functional.l1_loss(found, chunks[picks][:, :, -1].flatten(1))

    optimizer = torch.optim.AdamW(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay)
    with live_line(0, recipe.warmup_steps, "grounding warm-up") as report:
        for step, took in timed_steps(recipe.warmup_steps):
            lr, picks = recipe.lr * ramp(step), examples.picks(recipe.batch, generator)
            loss = ends(_seen(policy, examples, picks), picks)
            descend(optimizer, parameters, loss, lr, recipe.grad_clip_norm)
            report(step + 1, float(loss.detach()), lr, took)
    optimizer = torch.optim.AdamW(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay)
    average = {name: weight.detach().clone() for name, weight in weights.items()}
    with live_line(0, recipe.steps, "training") as report:
        for step, took in timed_steps(recipe.steps):
            lr = recipe.lr * ramp(step) * cosine(step, recipe.steps)
            picks = examples.picks(recipe.batch, generator)
            seen = _seen(policy, examples, picks)
            loss = functional.l1_loss(_chunks(policy, examples, picks, seen), chunks[picks].flatten(0, 1))
            both = loss + recipe.warmup_loss_weight * ends(seen, picks)
            descend(optimizer, parameters, both, lr, recipe.grad_clip_norm)
            average_into(average, weights, recipe.ema, step)
            report(step + 1, float(loss.detach()), lr, took)
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(average[name]).requires_grad_(False)
    policy.eval()


def _seen(policy: ACTPolicy, examples: Examples, picks: Tensor) -> Seen:
    return [policy.model.encode_picture(picture) for picture in _pictures(policy, examples.images[picks])]


def _chunks(policy: ACTPolicy, examples: Examples, picks: Tensor, seen: Seen) -> Tensor:
    """Chunks [B·colours, C, A], every picked observation under each colour; its pictures were looked at once."""
    colours = torch.eye(len(CUBE_COLOURS))
    whole = [examples.states[picks].repeat_interleave(len(colours), 0), colours.repeat(len(picks), 1)]
    tokens = [(rows.repeat_interleave(len(colours), 0), places) for rows, places in seen]
    return policy.model.decode(tokens, torch.cat(whole, 1))


def _pictures(policy: ACTPolicy, images: Tensor) -> list[Tensor]:
    """uint8 [B, cameras, 3, h, w] → the network's pictures, one [B, 3, h, w] a camera."""
    return policy.pictures({camera.name: images[:, slot] for slot, camera in enumerate(policy.config.cameras)})


@torch.no_grad()
def held_out_error(policy: ACTPolicy, examples: Examples) -> dict[str, float]:
    """Mean |Δ| in joint units (degrees; gripper 0..100) of chunks on the held-out scenes, all colours."""
    std = torch.from_numpy(policy.settings.action.high)
    wrong: list[Tensor] = []
    for picks in held_out_picks(examples):
        made = _chunks(policy, examples, picks, _seen(policy, examples, picks))
        wrong.append(((made - examples.chunks[picks].flatten(0, 1)) * std).abs())
    return error_facts(torch.cat(wrong))


def main(argv: Sequence[str]) -> int:
    description, out = "train small ACT policies of the reaching task", "new folder, for a checkpoint per colour"
    return run_recipe(argv, "reach_act", description, out, train, ACTRecipe())


if __name__ == "__main__":
    sys.exit(run_command(main))
