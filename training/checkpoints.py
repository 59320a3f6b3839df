# SPDX-License-Identifier: Apache-2.0
"""Checkpoints in LeRobot's folder layout, whole or not there at all.

    RUN/checkpoints/000100/pretrained_model/   config.json, model.safetensors, processors, train_config.json
    RUN/checkpoints/000100/training_state/     optimiser, scheduler, random states, step, and ours: run.json,
                                               resume.json, master_weights.safetensors (adapters)
    RUN/checkpoints/last -> 000100             best -> the one with the lowest validation loss

A checkpoint is written beside its place and renamed; the links are replaced by
a rename too. Source of names and layout: LeRobot 0.4.4.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from vla_edge.errors import TrainingError
from vla_edge.files import partial_path, replace_folder, write_json, written_beside
from vla_edge.policies.tensor_file import save_tensors
from vla_edge.training.run_files import checkpoints_of

CHECKPOINTS = "checkpoints"
PRETRAINED = "pretrained_model"
STATE = "training_state"
OPTIMIZER_FILE = "optimizer_state.safetensors"
GROUPS_FILE = "optimizer_param_groups.json"
SCHEDULER_FILE = "scheduler_state.json"
STEP_FILE = "training_step.json"
RESUME_FILE = "resume.json"
RUN_FILE = "run.json"
MASTER_FILE = "master_weights.safetensors"


@dataclass(frozen=True, slots=True)
class LoopState:
    """What the loop is made of besides weights, optimiser and random states.

    `extra` holds the sampler's, CRaFT's and the best checkpoint's JSON values.
    """

    step: int
    extra: Mapping[str, Any]


def checkpoint_path(run: Path, step: int, total_steps: int) -> Path:
    """The step with at least six digits, as LeRobot names it."""
    return run / CHECKPOINTS / f"{step:0{max(6, len(str(total_steps)))}d}"


def write_checkpoint(target: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write a folder that stands at `target` when it is whole.

    An existing `target` (the same step written again after a resume) is replaced.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(target)
    partial.mkdir()
    try:
        fill(partial)
        replace_folder(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_partial(run: Path) -> None:
    """Remove what a killed process left half-written beside the checkpoints; nobody else may be training `run`."""
    for path in (run / CHECKPOINTS).glob(".*.partial"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def point(run: Path, name: str, target: Path) -> None:
    """Make the link `checkpoints/name` (`last`, `best`) point at `target`, in one rename."""
    link = run / CHECKPOINTS / name
    with written_beside(link, flush=False) as partial:
        partial.symlink_to(target.name)


def last_checkpoint(run: Path) -> Path:
    """The newest whole checkpoint; TrainingError when there is none."""
    link = run / CHECKPOINTS / "last"
    if (link / STATE / STEP_FILE).is_file():
        return link.resolve()
    names = [name for name in checkpoints_of(run) if (run / CHECKPOINTS / name / STATE / STEP_FILE).is_file()]
    if not names:
        raise TrainingError(f"{run}: no checkpoint to go on from; start the run again")
    return (run / CHECKPOINTS / names[-1]).resolve()


def step_of(checkpoint: Path) -> int:
    """The optimiser steps done at `checkpoint`; TrainingError when its file is damaged."""
    file = checkpoint / STATE / STEP_FILE
    try:
        return int(json.loads(file.read_text())["step"])
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{file}: damaged ({error}); remove {checkpoint} to resume from the one before") from None


def prune(run: Path, keep: int) -> None:
    """Remove the oldest checkpoints until `keep` are left (0 keeps all); `last` and `best` always stay."""
    if keep < 1:
        return
    held = {os.path.realpath(run / CHECKPOINTS / name) for name in ("last", "best")}
    for name in checkpoints_of(run)[:-keep]:
        folder = run / CHECKPOINTS / name
        if str(folder.resolve()) not in held:
            shutil.rmtree(folder)


def save_state(folder: Path, optimizer: Optimizer, scheduler: LRScheduler, loop: LoopState) -> None:
    """Write optimiser, scheduler, step and loop state into `folder` (LeRobot's files, and `resume.json`)."""
    folder.mkdir(parents=True, exist_ok=True)
    state = optimizer.state_dict()
    tensors = {f"state/{i}/{name}": value for i, entry in state["state"].items() for name, value in entry.items()}
    save_tensors(tensors, folder / OPTIMIZER_FILE)
    write_json(folder / GROUPS_FILE, state["param_groups"])
    write_json(folder / SCHEDULER_FILE, scheduler.state_dict())
    write_json(folder / STEP_FILE, {"step": loop.step})
    write_json(folder / RESUME_FILE, loop.extra)


def load_state(folder: Path, optimizer: Optimizer, scheduler: LRScheduler) -> LoopState:
    """Restore what `save_state` wrote; TrainingError names a file that is missing or does not fit."""
    try:
        tensors = load_file(folder / OPTIMIZER_FILE)
        groups = json.loads((folder / GROUPS_FILE).read_text())
        schedule = json.loads((folder / SCHEDULER_FILE).read_text())
        step = json.loads((folder / STEP_FILE).read_text())["step"]
        extra = json.loads((folder / RESUME_FILE).read_text())
    except FileNotFoundError as error:
        raise TrainingError(f"{error.filename or folder}: missing; this checkpoint cannot be resumed") from None
    except (ValueError, KeyError, SafetensorError) as error:
        raise TrainingError(f"{folder}: damaged ({error}); resume from an earlier checkpoint") from None
    entries: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        _, index, key = name.split("/")
        entries.setdefault(int(index), {})[key] = value
    try:
        optimizer.load_state_dict({"state": entries, "param_groups": groups})
    except ValueError as error:
        raise TrainingError(f"{folder}: optimiser state does not fit the policy ({error}); start a new run") from None
    scheduler.load_state_dict(schedule)
    return LoopState(int(step), extra)


def save_adapters(folder: Path, policy: nn.Module) -> None:
    """Keep the adapters, which model.safetensors holds merged."""
    save_tensors({name: value for name, value in policy.named_parameters() if ".lora_" in name}, folder / MASTER_FILE)


def load_master_weights(folder: Path, parameters: Mapping[str, Tensor], adapted: bool) -> None:
    """Copy back in place what model.safetensors cannot give: adapters where the policy is `adapted`, and in runs of
    earlier versions the full precision of weights that were stored rounded."""
    file = folder / MASTER_FILE
    if not adapted and not file.exists():
        return
    try:
        saved = load_file(file)
    except (FileNotFoundError, SafetensorError) as error:
        raise TrainingError(f"{file}: cannot be read ({error}); resume from an earlier checkpoint") from None
    with torch.no_grad():
        for name, value in saved.items():
            if name not in parameters:
                raise TrainingError(f"{file}: weight {name} is not in the policy; the checkpoint is of another model")
            parameters[name].copy_(value)
