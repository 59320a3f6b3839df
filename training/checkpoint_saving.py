"""One checkpoint of a run: the policy in LeRobot's layout, and what resuming needs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from vla_edge.policies.checkpoint import MODEL_FILE
from vla_edge.policies.smolvla.backbone import VLM_FOLDER
from vla_edge.policies.smolvla.config import with_fields
from vla_edge.policies.smolvla.policy import SmolVLAPolicy
from vla_edge.policies.smolvla.saving import write_backbone, write_config, write_processors
from vla_edge.policies.tensor_file import save_tensors
from vla_edge.training.adapters import plain_weights
from vla_edge.training.checkpoints import PRETRAINED, RUN_FILE, STATE, LoopState, save_master_weights, save_state
from vla_edge.training.random_state import rng_file, save_rng
from vla_edge.training.run_config import TrainConfig, to_json
from vla_edge.training.run_files import write_json


def write_policy(folder: Path, policy: SmolVLAPolicy, cls_trained: bool) -> None:
    """The policy under LeRobot's names, each tensor in the type it was read with (float32 for new ones); adapters
    merged.

    `cls_trained` is the mark without which a CLS head is refused as a gate.
    """
    folder.mkdir(parents=True)
    write_config(folder, with_fields(policy.config, cls_trained=cls_trained) if cls_trained else policy.config)
    write_processors(folder, policy.config, policy.settings)
    write_backbone(folder, policy.backbone_folder, policy.settings.tokenizer.folder)
    save_tensors(stored_weights(policy), folder / MODEL_FILE, metadata={"format": "pt"})


def copy_from(policy: SmolVLAPolicy, folder: Path) -> None:
    """Let later checkpoints copy the backbone's and tokenizer's files from the checkpoint `folder`: the one that the
    run
    was resumed from is removed when it has become the oldest."""
    policy.backbone_folder = folder / VLM_FOLDER
    tokenizer = replace(policy.settings.tokenizer, folder=folder / VLM_FOLDER)
    policy.settings = replace(policy.settings, tokenizer=tokenizer)


def stored_weights(policy: SmolVLAPolicy) -> dict[str, Tensor]:
    """The tensors of model.safetensors. Rounding to a narrow type is the format's; resuming reads the full weights."""
    return {
        name: value.to("cpu", policy.stored_types.get(name, torch.float32)).contiguous()
        for name, value in plain_weights(policy).items()
    }


def fill_checkpoint(
    folder: Path,
    config: TrainConfig,
    policy: SmolVLAPolicy,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    loop: LoopState,
) -> None:
    """Write everything into the (temporary) checkpoint `folder`; called by the first process."""
    write_policy(folder / PRETRAINED, policy, cls_trained=config.kind == "delta")
    write_json(folder / PRETRAINED / "train_config.json", lerobot_train_config(config))
    state = folder / STATE
    save_state(state, optimizer, scheduler, loop)
    write_json(state / RUN_FILE, to_json(config))
    save_rng(rng_file(state, 0))
    save_master_weights(state, unsaved_weights(policy))
    for file in Path(config.output).glob(".rng_state_*.safetensors"):
        os.replace(file, state / file.name.removeprefix("."))


def unsaved_weights(policy: SmolVLAPolicy) -> dict[str, Tensor]:
    """What model.safetensors cannot give back bit for bit: trained weights of a narrow stored type, and adapters."""
    narrow = {name for name, kind in policy.stored_types.items() if kind != torch.float32}
    return {
        name: parameter
        for name, parameter in policy.named_parameters()
        if parameter.requires_grad and (name in narrow or ".lora_" in name)
    }


def lerobot_train_config(config: TrainConfig) -> Mapping[str, Any]:
    """The run under the field names LeRobot's `train_config.json` has, for its tools and for people."""
    optimizer, schedule = config.optimizer, config.schedule
    return {
        "dataset": {
            "repo_id": config.data[0].name,
            "root": config.data[0].path,
            "episodes": list(config.data[0].episodes) or None,
        },
        "policy": {"type": "smolvla", "pretrained_path": config.policy},
        "output_dir": config.output,
        "job_name": Path(config.output).name,
        "resume": False,
        "seed": config.seed,
        "num_workers": config.workers,
        "batch_size": config.batch_size,
        "steps": config.steps,
        "log_freq": config.log_every,
        "save_checkpoint": True,
        "save_freq": config.save_every,
        "optimizer": {
            "type": "adamw",
            "lr": optimizer.lr,
            "betas": list(optimizer.betas),
            "eps": optimizer.eps,
            "weight_decay": optimizer.weight_decay,
            "grad_clip_norm": optimizer.grad_clip_norm,
        },
        "scheduler": {
            "type": "cosine_decay_with_warmup",
            "num_warmup_steps": schedule.warmup_steps,
            "num_decay_steps": schedule.decay_steps,
            "peak_lr": optimizer.lr,
            "decay_lr": schedule.decay_lr,
        },
    }
