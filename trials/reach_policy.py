# SPDX-License-Identifier: Apache-2.0
"""Train the reaching policy: a small SmolVLA that reaches the cube it is told to.

    python -m vla_edge.trials.reach_policy --dataset DATASET --out CHECKPOINT [--arm so101]

DATASET comes from `vla_edge.trials.reach_data` and is recorded first when it does not exist. Two phases, both counted
in steps so that the result does not depend on the machine's speed:

1. Grounding warm-up. A linear head on the state token's output regresses the
   chunk's last action, for all three instructions of every picture. Without it
   flow matching alone never learns to read the instruction.
2. Flow matching on all weights, plus half the warm-up's loss, with an
   exponential moving average of the weights, which is what is saved.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from vla_edge.command_line import run_command
from vla_edge.lerobot_data.reader import open_dataset
from vla_edge.policies.checkpoint_folder import VLM_FOLDER
from vla_edge.policies.features import ACTION, STATE
from vla_edge.policies.processing import default_processing
from vla_edge.policies.smolvla.backbone import read_backbone
from vla_edge.policies.smolvla.config import config_from_json
from vla_edge.policies.smolvla.flow import FlowMatching, Prefix, sample_time
from vla_edge.policies.smolvla.new_policy import round_to_published, write_vlm
from vla_edge.policies.smolvla.policy import SmolVLAPolicy, pad_last
from vla_edge.robot.sim.scene import BODIES
from vla_edge.training.progress import Report, live_line
from vla_edge.training.statistics import chosen_statistics
from vla_edge.trials.reach_data import CHUNK, INSTRUCTIONS, ReachRecording
from vla_edge.trials.reach_examples import Examples, read_examples
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

BACKBONE: Mapping[str, Any] = {
    "scale_factor": 2,
    "text_config": {
        "vocab_size": 512,
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "intermediate_size": 256,
        "rms_norm_eps": 1e-05,
    },
    "vision_config": {
        "hidden_size": 96,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "intermediate_size": 192,
        "image_size": 64,
        "patch_size": 16,
    },
}
(JOINTS,) = {len(body.joints) for body in BODIES.values()}
CAMERA_SHAPE = (3, ReachRecording().height, ReachRecording().width)
POLICY: Mapping[str, Any] = {
    "type": "smolvla",
    "chunk_size": CHUNK,
    "n_action_steps": 25,
    "max_state_dim": 8,
    "max_action_dim": 8,
    "resize_imgs_with_padding": [64, 64],
    "tokenizer_max_length": 16,
    "pad_language_to": "max_length",
    "num_vlm_layers": 4,
    "vlm_model_name": VLM_FOLDER,
    "load_vlm_weights": False,
    "freeze_vision_encoder": False,
    "train_expert_only": False,
    "input_features": {
        STATE: {"type": "STATE", "shape": [JOINTS]},
        "observation.images.laptop": {"type": "VISUAL", "shape": list(CAMERA_SHAPE)},
        "observation.images.phone": {"type": "VISUAL", "shape": list(CAMERA_SHAPE)},
    },
    "output_features": {ACTION: {"type": "ACTION", "shape": [JOINTS]}},
}


@dataclass(frozen=True, slots=True)
class Recipe(AnyRecipe):
    """Steps, batch (observations a step) and learning rates."""

    warmup_steps: int = 750
    flow_steps: int = 1200
    batch: int = 64
    warmup_lr: float = 1e-3
    flow_lr: float = 8e-4


@dataclass(frozen=True)
class Training:
    """What both phases work on. `head` regresses the last action of the chunk and is not saved. token_ids int64 and
    token_mask bool [instructions, T]."""

    policy: SmolVLAPolicy
    head: nn.Linear
    examples: Examples
    token_ids: Tensor
    token_mask: Tensor
    recipe: Recipe
    generator: torch.Generator

    @property
    def model(self) -> FlowMatching:
        return self.policy.model

    def parameters(self) -> list[nn.Parameter]:
        return [*self.model.parameters(), *self.head.parameters()]

    def pick(self) -> Tensor:
        return self.examples.picks(self.recipe.batch, self.generator)

    def pixels(self, picks: Tensor) -> Tensor:
        """The network's pictures of these observations: float32 [B, cameras, 3, h, w] in −1..1."""
        return self.examples.images[picks].float() / 127.5 - 1

    def states(self, picks: Tensor) -> Tensor:
        """Their joints, normalised and padded [B, S]."""
        return pad_last(self.examples.states[picks], self.policy.config.max_state_dim)


def train(dataset: Path, out: Path, recipe: Recipe) -> dict[str, float]:
    """Train on the dataset and write the checkpoint `out`, which must not exist. Returns what was measured.

    Errors: DatasetError, CheckpointError, TrainingError when the loss stops being finite.
    """
    torch.set_num_threads(recipe.threads)
    torch.manual_seed(recipe.seed)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch, open_dataset(dataset) as data:
        policy = new_policy(Path(scratch), chosen_statistics([data], "first"), recipe.seed)
        size = policy.config.resize_imgs_with_padding
        examples = read_examples(data, policy.settings, size, recipe.held_out_scenes)
        ids, mask = policy.tokenizer.encode(INSTRUCTIONS)
        used = mask.any(dim=0)
        run = Training(
            policy,
            nn.Linear(policy.backbone.text.hidden_size, policy.config.action_dim),
            examples,
            ids[:, used],
            mask[:, used],
            recipe,
            torch.Generator().manual_seed(recipe.seed),
        )
        with live_line(0, recipe.warmup_steps, "grounding warm-up") as report:
            _warm_up(run, report)
        with live_line(0, recipe.flow_steps, "flow matching") as report:
            average = _flow(run, report)
        with torch.no_grad():
            for name, weight in policy.model.named_parameters():
                weight.copy_(average[name])
        policy.stored_types = round_to_published(policy)
        result = {
            **held_out_error(run),
            "seconds": time.monotonic() - start,
            "parameters": float(sum(p.numel() for p in policy.parameters())),
        }
        policy.save_pretrained(out)
    return result


def new_policy(scratch: Path, statistics: Any, seed: int) -> SmolVLAPolicy:
    """The untrained policy; its backbone's files are written into `scratch`, which must live until it is saved."""
    write_vlm(scratch / VLM_FOLDER, dict(BACKBONE))
    config = config_from_json(dict(POLICY), "reaching policy")
    settings = default_processing(scratch, config, statistics)
    torch.manual_seed(seed)
    policy = SmolVLAPolicy(config, read_backbone(scratch / VLM_FOLDER), settings)
    policy.backbone_folder = scratch / VLM_FOLDER
    vlm = policy.model.vlm_with_expert.vlm.model
    width = policy.backbone.text.hidden_size
    with torch.no_grad():
        # Picture and word rows are multiplied by √width: start them so that all rows have the size of the state's.
        vlm.text_model.embed_tokens.weight.normal_(0, width**-0.5)
        for weight in vlm.connector.parameters():
            weight.normal_(0, (width * weight.shape[1]) ** -0.5)
        for name, weight in policy.model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.mul_(0.5)
    return policy


def _warm_up(run: Training, report: Report) -> None:
    recipe, parameters = run.recipe, run.parameters()
    optimizer = torch.optim.AdamW(parameters, lr=recipe.warmup_lr, weight_decay=recipe.weight_decay)
    for step, took in timed_steps(recipe.warmup_steps):
        lr = recipe.warmup_lr * ramp(step)
        picks = run.pick()
        prefix = _prefix_of_all(run, picks)
        loss = functional.mse_loss(run.head(prefix.hidden[:, -1]), run.examples.chunks[picks][:, :, -1].flatten(0, 1))
        descend(optimizer, parameters, loss, lr, recipe.grad_clip_norm)
        report(step + 1, float(loss.detach()), lr, took)


def _flow(run: Training, report: Report) -> dict[str, Tensor]:
    """Returns the averaged weights by name."""
    recipe, parameters, batch = run.recipe, run.parameters(), run.recipe.batch
    optimizer = torch.optim.AdamW(parameters, lr=recipe.flow_lr, weight_decay=recipe.weight_decay)
    average = {name: weight.detach().clone() for name, weight in run.model.named_parameters()}
    for step, took in timed_steps(recipe.flow_steps):
        lr = recipe.flow_lr * ramp(step) * cosine(step, recipe.flow_steps)
        picks = run.pick()
        which = torch.randint(0, len(INSTRUCTIONS), (batch,), generator=run.generator)
        actions = run.examples.chunks[picks, which]
        padded = functional.pad(actions, (0, run.policy.config.max_action_dim - actions.shape[-1]))
        prefix = _prefix(run, run.pixels(picks), which, run.states(picks))
        noise = torch.randn(padded.shape, generator=run.generator)
        times = sample_time(batch, padded.device)
        mix = times[:, None, None]
        velocity = run.model.denoise_step(prefix, mix * noise + (1 - mix) * padded, times)
        loss = functional.mse_loss(velocity, noise - padded)
        grounding = functional.mse_loss(run.head(prefix.hidden[:, -1]), actions[:, -1])
        descend(optimizer, parameters, loss + recipe.warmup_loss_weight * grounding, lr, recipe.grad_clip_norm)
        average_into(average, dict(run.model.named_parameters()), recipe.ema, step)
        report(step + 1, float(loss.detach()), lr, took)
    return average


def _prefix_of_all(run: Training, picks: Tensor) -> Prefix:
    """The prefix of every picked observation under each instruction, [3·batch]; pictures are looked at once."""
    count = len(INSTRUCTIONS)
    which = torch.arange(count).repeat(len(picks))
    return _prefix(run, run.pixels(picks), which, run.states(picks).repeat_interleave(count, 0), count)


def _prefix(run: Training, pixels: Tensor, which: Tensor, states: Tensor, times: int = 1) -> Prefix:
    """pixels [B, cameras, 3, h, w] in −1..1, each observation used `times` times in a row; which, states [B·times,
    …]."""
    tokens = run.model.embed_images(list(pixels.flatten(0, 1)[None]))[0].unflatten(0, pixels.shape[:2])
    slots = [tokens[:, slot].repeat_interleave(times, 0) for slot in range(pixels.shape[1])]
    token_ids = run.token_ids[which]
    present = torch.ones(len(which), dtype=torch.bool)
    rows, mask = run.model.embed_prefix(slots, [present] * len(slots), token_ids, run.token_mask[which])
    return run.model.run_state(run.model.run_prefix(rows, mask), states)


@torch.no_grad()
def held_out_error(run: Training) -> dict[str, float]:
    """Mean |Δ| in joint units (degrees; gripper 0..100) of sampled chunks on the held-out scenes, all instructions."""
    examples, model = run.examples, run.model
    std = torch.from_numpy(run.policy.settings.action.high)
    wrong: list[Tensor] = []
    for picks in held_out_picks(examples):
        prefix = _prefix_of_all(run, picks)
        real = examples.chunks[picks].flatten(0, 1)
        noise = torch.randn((len(real), real.shape[1], run.policy.config.max_action_dim), generator=run.generator)
        sampled = model.integrate(prefix, noise, run.policy.config.num_steps)[..., : real.shape[-1]]
        wrong.append(((sampled - real) * std).abs())
    return error_facts(torch.cat(wrong))


def main(argv: Sequence[str]) -> int:
    return run_recipe(
        argv, "reach_policy", "train the reaching policy of the demo", "new checkpoint folder", train, Recipe()
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
