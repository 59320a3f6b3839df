# SPDX-License-Identifier: Apache-2.0
"""LeRobot's argument names in `vla-train`: one table, and the translation of a command line by it.

`--name=value` and `--name value` are taken, as LeRobot takes them (names of LeRobot 0.4 to 0.6). A name that is in no
table and near none of its names is left for our parser to refuse.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from vla_edge.command_parser import did_you_mean
from vla_edge.errors import UsageError

NAMES = {
    "--policy.path": "--checkpoint",
    "--dataset.root": "--dataset",
    "--dataset.episodes": "--episodes",
    "--output_dir": "--out",
    "--batch_size": "--batch-size",
    "--num_workers": "--workers",
    "--save_freq": "--save-every",
    "--log_freq": "--log-every",
    "--policy.device": "--device",
    "--policy.n_action_steps": "--n-action-steps",
    "--policy.optimizer_lr": "--lr",
    "--policy.optimizer_weight_decay": "--weight-decay",
    "--policy.optimizer_grad_clip_norm": "--grad-clip",
    "--policy.scheduler_warmup_steps": "--warmup",
    "--policy.scheduler_decay_steps": "--decay",
    "--policy.scheduler_decay_lr": "--decay-lr",
    "--optimizer.lr": "--lr",
    "--optimizer.weight_decay": "--weight-decay",
    "--optimizer.grad_clip_norm": "--grad-clip",
    "--peft.r": "--lora-rank",
    "--tolerance_s": "--tolerance",
}
"""LeRobot's name → ours, the value as it is (of a list of episodes without its brackets)."""
SETTINGS = {
    "--policy.optimizer_betas": "optimizer.betas",
    "--policy.optimizer_eps": "optimizer.eps",
    "--optimizer.betas": "optimizer.betas",
    "--optimizer.eps": "optimizer.eps",
    "--policy.num_steps": "num_steps",
    "--policy.resize_imgs_with_padding": "image_size",
    "--wandb.project": "wandb.project",
    "--wandb.entity": "wandb.entity",
}
"""LeRobot's name → the field that `--set` gives the value to."""
SWITCHES = {
    "--save_checkpoint": ("--save", "--no-save"),
    "--policy.freeze_vision_encoder": ("--freeze-vision", "--no-freeze-vision"),
    "--policy.train_expert_only": ("--expert-only", "--no-expert-only"),
    "--policy.train_state_proj": ("--train-state-proj", "--no-train-state-proj"),
    "--wandb.enable": ("--track=wandb", ""),
}
"""LeRobot's name → what stands for true and for false."""
WITHOUT_MEANING = ("--policy.repo_id", "--policy.type", "--job_name")
"""Taken and dropped: a policy says its type itself, nothing is uploaded."""
INSTEAD = {
    "--resume": "vla-train resume RUN",
    "--config_path": "vla-train resume RUN` or `--config FILE",
    "--eval_freq": "--validate-every N --held-out 0.1",
    "--policy.use_amp": "--precision bf16",
    "--dataset.image_transforms.enable": "--augment 3",
}
"""LeRobot's name → what is typed here for it: refused, because it asks for more than another name."""
REPO_ID = "--dataset.repo_id"
"""The dataset where no --dataset.root says where it lies; as LeRobot has it."""
RENAME = "--rename_map"
"""JSON of the dataset's camera → the policy's; each pair becomes a --camera."""
TRUE, FALSE = ("true", "1", "yes"), ("false", "0", "no")


def translate(words: Sequence[str]) -> list[str]:
    """A command line in our names. UsageError: a value is missing or neither true nor false."""
    left, ours, repo_id = list(words), [], ""
    while left:
        word = left.pop(0)
        name, equals, value = word.partition("=")
        if name == "--policy.push_to_hub":
            _refuse_upload(value if equals else left.pop(0) if left else "")
            continue
        if name in INSTEAD:
            raise UsageError(f"LeRobot's {name} is `{INSTEAD[name]}` here; see `vla-train fine-tune --help`")
        known = (*NAMES, *SETTINGS, *SWITCHES, *WITHOUT_MEANING, REPO_ID, RENAME)
        if name not in known:
            if name.startswith("--") and ("_" in name or "." in name) and (near := did_you_mean(name, known)):
                raise UsageError(f"there is no option {name}{near}")
            ours.append(word)
            continue
        if not equals:
            if not left:
                raise UsageError(f"{name} needs a value")
            value = left.pop(0)
        if name == REPO_ID:
            repo_id = value
        elif name == RENAME:
            ours += [f"--camera={policy}={dataset}" for dataset, policy in _rename_map(value).items()]
        elif name in NAMES:
            ours += [NAMES[name], value.strip("[]").replace(" ", "") if name == "--dataset.episodes" else value]
        elif name in SETTINGS:
            ours += ["--set", f"{SETTINGS[name]}={value}"]
        elif name in SWITCHES:
            if value.lower() not in TRUE + FALSE:
                raise UsageError(f"{name} {value!r}: write true or false")
            ours += [text for text in [SWITCHES[name][value.lower() in FALSE]] if text]
    given = any(word.partition("=")[0] == "--dataset" for word in ours)
    return ours if given or not repo_id else [*ours, "--dataset", repo_id]


def _rename_map(value: str) -> dict[str, str]:
    try:
        pairs = json.loads(value)
    except json.JSONDecodeError:
        pairs = None
    if not isinstance(pairs, dict) or not all(isinstance(name, str) for name in pairs.values()):
        raise UsageError(
            f'{RENAME} {value!r}: write {{"dataset\'s name": "policy\'s name"}}, or --camera NAME=DATASET_NAME'
        )
    return pairs


def _refuse_upload(value: str) -> None:
    if value.lower() not in FALSE:
        raise UsageError(
            "--policy.push_to_hub: nothing is uploaded here; leave it away, and upload the checkpoint after"
        )


def table() -> str:
    """What the help shows."""
    pairs = [*NAMES.items(), *((name, f"--set {ours}=…") for name, ours in SETTINGS.items())]
    for name, (on, off) in SWITCHES.items():
        both = f"--[no-]{on[2:]}" if off == f"--no-{on[2:]}" else " | ".join(text for text in (on, off) if text)
        pairs.append((f"{name}=true|false", both))
    pairs += [(REPO_ID, "--dataset, without --dataset.root"), (RENAME, "--camera NAME=DATASET_NAME")]
    rows = [f"  {name:<42} {ours}" for name, ours in pairs]
    rows += [f"  {', '.join(WITHOUT_MEANING)}: taken, without effect"]
    return "\n".join(["LeRobot's names are understood too:", *rows])
