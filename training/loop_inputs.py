# SPDX-License-Identifier: Apache-2.0
"""From a configuration to everything the loop needs: data, policy, trained weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from vla_edge.errors import ConfigError, DatasetError, TrainingError
from vla_edge.lerobot_data.reader import Dataset, open_dataset
from vla_edge.policies.checkpoint_folder import resolve_checkpoint
from vla_edge.policies.families import family_of, policy_class
from vla_edge.policies.features import ACTION, STATE
from vla_edge.policies.smolvla.distill import share_backbone
from vla_edge.policies.smolvla.flow import FlowMatching
from vla_edge.policies.smolvla.policy import SmolVLAPolicy
from vla_edge.training import adapters as trainable
from vla_edge.training.batches import usual_workers
from vla_edge.training.build import Fit, policy_for_training
from vla_edge.training.frozen.caches import attach_caches
from vla_edge.training.run_config import AugmentConfig, TrainConfig
from vla_edge.training.statistics import check_dimensions, check_spread, chosen_statistics
from vla_edge.training.training_frames import Frames, FrameSettings

SMALLEST_CLS_BATCH, GOOD_CLS_BATCH = 2, 32
STALE_FRAMES = 25
"""Largest age, in frames, of the queued chunk that the stale delta target corrects: half a chunk of 50."""


@dataclass
class Setup:
    """One assembled run; `validation` is empty without held-out episodes. teacher: the model whose steps a distilled
    policy learns to jump."""

    config: TrainConfig
    policy: Any
    training: list[Frames]
    validation: list[Frames]
    trained: dict[str, torch.nn.Parameter]
    notes: list[str] = field(default_factory=list)
    teacher: FlowMatching | None = None


def assemble(config: TrainConfig, policy: Any = None) -> Setup:
    """Open the data, build or take the policy, choose what trains.

    policy: an already built one (from scratch, resumed); None reads `config.policy`.
    Errors: DatasetError, CheckpointError, ConfigError, TrainingError.
    """
    if not config.data:
        raise ConfigError("no dataset given; use --dataset PATH")
    datasets = [open_dataset(task.path) for task in config.data]
    check_dimensions(datasets)
    if policy is None:
        policy = policy_for_training(Path(config.policy), fit_of(config, datasets))
    check_kind(config, policy)
    if policy.settings.tokenizer is not None:
        check_tasks(datasets)
    check_spread(datasets, policy.settings, config.statistics == "union" and config.kind == "base")
    cameras = tuple(camera.source for camera in policy.settings.cameras)
    if config.workers is None:
        config = replace(config, workers=_usual_workers(config, datasets, cameras))
    stale = STALE_FRAMES if config.kind == "delta" and policy.config.delta_target == "stale" else 0
    reading = FrameSettings(
        cameras, policy.config.chunk_size, config.seed, config.augment, min(stale, policy.config.chunk_size - 1)
    )
    plain = replace(reading, augment=AugmentConfig())
    training = [Frames(task, reading) for task in config.data if task.weight > 0]
    validation = [Frames(task, plain, held_out=True) for task in config.data if task.held_out]
    sources = [*training, *validation]
    check_finite(sources)
    for frames in sources:
        share = config.cache_mb * 2**20 * len(frames) // max(1, sum(map(len, sources)))
        frames.room = share // max(1, config.workers or 0) if frames in training else share
    if config.lora.rank:
        trainable.add_lora(policy, config.lora)
    teacher = teacher_of(config, datasets, policy) if config.kind == "distill" else None
    trained = trainable.trained_parameters(policy)
    if not trained:
        raise TrainingError("nothing is left to train; loosen the freezing rules")
    notes = [*policy.notes, *without_effect(config)]
    if policy.settings.tokenizer is not None:
        notes += long_tasks(policy, [task.name for task in config.data], datasets)
    notes += [
        f"{camera.name} is not in the data: the policy trains without it, masked"
        for camera in policy.settings.cameras
        if camera.source not in datasets[0].camera_keys
    ]
    notes += [f"{data.root}: {key} is left out: {why}" for data in datasets for key, why in data.info.left_out.items()]
    if config.kind == "delta" and not validation:
        notes.append(
            "no episode is held out, so nobody will know how well the delta expert corrects, and --cache delta refuses "
            "it: give --held-out 0.1, of two episodes or more"
        )
    notes += attach_caches(config, policy, sources)
    schedule = config.schedule
    if config.steps < schedule.decay_steps:
        warm = int(schedule.warmup_steps * config.steps / schedule.decay_steps)
        notes.append(
            f"the schedule is scaled to the run: warm-up {schedule.warmup_steps} → {warm} steps, decay "
            f"{schedule.decay_steps} → {config.steps}"
        )
    if config.kind == "delta" and policy.config.use_cls_head and config.batch_size < GOOD_CLS_BATCH:
        notes.append(
            f"VICReg's variances run over each batch of {config.batch_size} (not over accumulated ones) and are rough "
            f"below {GOOD_CLS_BATCH}: a larger --batch-size, or --set delta.use_cls_head=false"
        )
    notes.append(
        f"trains {trainable.count(trained) / 1e6:.2f} M of {sum(p.numel() for p in policy.parameters()) / 1e6:.2f} M "
        "weights"
    )
    return Setup(config, policy, training, validation, trained, notes, teacher)


def _usual_workers(config: TrainConfig, datasets: Sequence[Dataset], cameras: Sequence[str]) -> int:
    kept = config.cache_vision or config.cache_prefix
    decoded = () if kept else [key for key in cameras if key in datasets[0].camera_keys]
    size = sum(int(np.prod(datasets[0].features[key].shape)) for key in decoded)
    return usual_workers(sum(map(len, datasets)), size, config.cache_mb)


def fit_of(config: TrainConfig, datasets: Sequence[Dataset]) -> Fit:
    """How the policy is fitted to the data under `config`: what keeps to a frozen policy keeps its statistics."""
    keeps = config.kind != "base" or config.statistics == "checkpoint"
    return Fit(
        datasets=datasets,
        statistics=None if keeps else chosen_statistics(datasets, config.statistics),
        rename=config.rename,
        fields=policy_fields(config, family_of(resolve_checkpoint(Path(config.policy)))),
        seed=config.seed,
        distill_steps=config.num_steps if config.kind == "distill" else 0,
    )


def teacher_of(config: TrainConfig, datasets: Sequence[Dataset], student: SmolVLAPolicy) -> FlowMatching:
    """The model that `student` is distilled from, on the student's backbone. TrainingError: other weights than the run
    began with."""
    teacher = policy_for_training(Path(config.policy), Fit(datasets, None, config.rename, {}, config.seed))
    if teacher.digest != student.config.distilled["teacher"]:
        raise TrainingError(
            f"{config.policy}: not the weights this run is distilled from; put them back, or start a new run"
        )
    share_backbone(teacher.model, student.model)
    model: FlowMatching = teacher.model
    return model


def _check_trains_whole(config: TrainConfig, family: str) -> None:
    """ConfigError names a flag that has no meaning for a policy that is trained whole."""
    given = {
        "--kind delta": config.kind == "delta",
        "distill": config.kind == "distill",
        "--lora-rank": config.lora.rank,
        "--craft-anchors": config.craft.anchors,
        "--padded-dims": config.padded_dims,
        "--freeze-vision": config.freeze.vision is not None,
        "--expert-only": config.freeze.expert_only is not None,
        "--train-state-proj": config.freeze.state_proj is not None,
        "--set image_size": config.image_size,
        "--set num_steps": config.num_steps,
    }
    for flag, wanted in given.items():
        if wanted:
            raise ConfigError(f"{flag} is for SmolVLA; a policy of type {family} is trained whole: leave it out")


def policy_fields(config: TrainConfig, family: str) -> dict[str, Any]:
    """Fields of the policy's configuration that the run decides."""
    if policy_class(family).trains_whole:
        _check_trains_whole(config, family)
        return {"n_action_steps": config.n_action_steps} if config.n_action_steps else {}
    executed = {"n_action_steps": config.n_action_steps} if config.n_action_steps else {}
    if config.kind == "delta":
        own = {name: value for name, value in asdict(config.delta).items() if value is not None}
        return {"train_delta_expert": True, "delta_target": config.delta_target, **own, **executed}
    if config.kind == "distill":
        frozen = {"freeze_vision_encoder": True, "train_expert_only": True, "train_state_proj": False}
        return {"train_delta_expert": False, **frozen, **executed}
    wish = config.freeze
    chosen: dict[str, Any] = {
        "freeze_vision_encoder": wish.vision,
        "train_expert_only": wish.expert_only,
        "train_state_proj": wish.state_proj,
    }
    chosen |= {"num_steps": config.num_steps or None, "resize_imgs_with_padding": config.image_size}
    given = {name: value for name, value in chosen.items() if value is not None}
    return {"train_delta_expert": False, **given, **executed}


def check_kind(config: TrainConfig, policy: SmolVLAPolicy) -> None:
    """Delta training needs a CLS head, a delta expert and at least two samples per batch (VICReg's variances);
    distilling trains the expert as it is and nothing else."""
    if config.kind == "base":
        return
    distills, wish = config.kind == "distill", config.freeze
    refused = {
        "--lora-rank": config.lora.rank,
        "--craft-anchors": config.craft.anchors,
        "--padded-dims": config.padded_dims,
        "--statistics first": config.statistics == "first",
        "--set image_size": config.image_size,
        "--no-freeze-vision": wish.vision is False,
        "--no-expert-only": wish.expert_only is False,
        "--train-state-proj": wish.state_proj,
        "--augment": distills and config.augment.most,
        "--set num_steps": not distills and config.num_steps,
    }
    for flag in (flag for flag, given in refused.items() if given):
        way = "distill" if distills else "--kind delta"
        raise ConfigError(f"{flag} does not go with {way}, which keeps to its policy as it is; leave it out")
    if distills:
        return
    if not policy.config.train_delta_expert:
        raise ConfigError("delta training needs train_delta_expert; it is set when the policy is built")
    if policy.config.use_cls_head and config.batch_size < SMALLEST_CLS_BATCH:
        raise ConfigError(
            f"batch size {config.batch_size}: VICReg needs at least {SMALLEST_CLS_BATCH} samples, {GOOD_CLS_BATCH} "
            "or more are good; give a larger --batch-size, or --set delta.use_cls_head=false"
        )
    if config.delta_target == "stale" and policy.config.chunk_size < 2:
        raise ConfigError(
            "delta_target stale needs chunks of two actions or more: nothing of an older chunk of one is left"
        )
    if config.delta_target == "stale" and config.delta.cls_noise_scale is not None:
        raise ConfigError("delta.cls_noise_scale disturbs the chunks of --delta-target noise; leave it out")


def without_effect(config: TrainConfig) -> list[str]:
    """A note for every part of the configuration that is set and that this kind of run does not read."""
    usual = TrainConfig("", "", ())
    needs = {
        "delta": (config.kind == "delta", "--kind delta"),
        "delta_target": (config.kind == "delta", "--kind delta"),
        "lora": (config.lora.rank, "--lora-rank"),
        "craft": (config.craft.anchors, "--craft-anchors"),
        "augment": (config.augment.most, "--augment"),
        "cache_type": (config.cache_vision or config.cache_prefix, "--cache-vision or --cache-prefix"),
        "wandb": ("wandb" in config.trackers, "--track wandb"),
    }
    return [
        f"{name} is set and has no effect without {flag}"
        for name, (read, flag) in needs.items()
        if not read and getattr(config, name) != getattr(usual, name)
    ]


def check_tasks(datasets: Sequence[Dataset]) -> None:
    """DatasetError for frames without an instruction, which would teach the policy to ignore instructions."""
    for dataset in datasets:
        empty = [number for number, text in dataset.tasks.items() if not text.strip()]
        frames = np.flatnonzero(np.isin(dataset.column("task_index"), empty))
        if len(frames):
            raise DatasetError(
                f"{dataset.root}: episode {dataset.episode_of(int(frames[0])).index} has an empty instruction; name it "
                f'with `vla-data tasks {dataset.root} --rename "" TEXT`'
            )


def check_finite(sources: Sequence[Frames]) -> None:
    """DatasetError for a joint's value, in the frames that are used, that is no number: the loss would be none."""
    for frames in sources:
        data = frames.dataset
        for feature in (STATE, ACTION):
            wrong = frames.indices[~np.isfinite(data.column(feature)[frames.indices]).all(axis=1)]
            if len(wrong):
                episode = data.episode_of(int(wrong[0]))
                raise DatasetError(
                    f"{data.root}: {feature} of frame {wrong[0] - episode.from_index} in episode {episode.index} is "
                    f"not finite ({len(wrong)} such frames); leave the episode out with --episodes, or "
                    f"take it out: `vla-data delete {data.root} --episodes {episode.index} --out NEW`"
                )


def long_tasks(policy: SmolVLAPolicy, names: Sequence[str], datasets: Sequence[Dataset]) -> list[str]:
    """A note for every instruction that the policy's tokenizer would cut."""
    settings = policy.tokenizer.settings
    whole = Tokenizer.from_file(str(settings.folder / "tokenizer.json"))
    whole.no_truncation()
    notes = policy.tokenizer.read_otherwise(sorted({text for data in datasets for text in data.tasks.values()}))
    for name, dataset in zip(names, datasets):
        for text in dataset.tasks.values():
            count = len(whole.encode(f"{text}\n" if settings.append_newline else text).ids)
            if count > settings.max_length:
                notes.append(
                    f"{name}: the instruction {text!r} has {count} tokens, the policy reads {settings.max_length}; "
                    "shorten it with `vla-data tasks`"
                )
    return notes
