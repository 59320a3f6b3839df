# SPDX-License-Identifier: Apache-2.0
"""One checkpoint of a run: the policy in LeRobot's layout, and what resuming needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from vla_edge.fields import to_json
from vla_edge.files import put_in_place, write_json
from vla_edge.policies.checkpoint_folder import VLM_FOLDER
from vla_edge.training.checkpoints import PRETRAINED, RUN_FILE, STATE, LoopState, save_adapters, save_state
from vla_edge.training.random_state import rng_file, save_rng
from vla_edge.training.run_config import TrainConfig


def copy_from(policy: Any, folder: Path) -> None:
    """Let later checkpoints copy the backbone's and tokenizer's files from the checkpoint `folder`: the one that the
    run
    was resumed from is removed when it has become the oldest."""
    if policy.settings.tokenizer is None:
        return
    policy.backbone_folder = folder / VLM_FOLDER
    policy.tokenizer.settings = replace(policy.tokenizer.settings, folder=folder / VLM_FOLDER)


def fill_checkpoint(
    folder: Path,
    config: TrainConfig,
    policy: Any,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    loop: LoopState,
    delta_error: float | None = None,
) -> None:
    """Write everything into the (temporary) checkpoint `folder`; called by the first process. delta_error: held out, of
    the delta expert that was trained."""
    (folder / PRETRAINED).mkdir()
    marks: dict[str, Any] = {}
    if config.kind == "delta":
        marks = {"delta_relative_error": delta_error, "cls_trained": policy.config.use_cls_head}
    policy.write(folder / PRETRAINED, marks)
    write_json(folder / PRETRAINED / "train_config.json", lerobot_train_config(config, policy.family))
    state = folder / STATE
    save_state(state, optimizer, scheduler, loop)
    write_json(state / RUN_FILE, to_json(config))
    save_rng(rng_file(state, 0))
    if config.lora.rank:
        save_adapters(state, policy)
    for file in Path(config.output).glob(".rng_state_*.safetensors"):
        put_in_place(file, state / file.name.removeprefix("."))


def lerobot_train_config(config: TrainConfig, kind: str) -> Mapping[str, Any]:
    """The run under the field names LeRobot's `train_config.json` has, for its tools and for people."""
    optimizer, schedule = config.optimizer, config.schedule
    return {
        "dataset": {
            "repo_id": config.data[0].name,
            "root": config.data[0].path,
            "episodes": list(config.data[0].episodes) or None,
        },
        "policy": {"type": kind, "pretrained_path": config.policy or None},
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
