# SPDX-License-Identifier: Apache-2.0
"""The policy a run trains: from a checkpoint or from a backbone, fitted to the data's features and statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from vla_edge.camera_names import nearest, short_name
from vla_edge.errors import ConfigError
from vla_edge.lerobot_data.reader import Dataset
from vla_edge.policies.checkpoint import Weights, load_weights, read_weights
from vla_edge.policies.checkpoint_folder import find_folder, resolve_checkpoint, vlm_of_base
from vla_edge.policies.families import family_of, load_policy, policy_class
from vla_edge.policies.features import ACTION, STATE
from vla_edge.policies.normalization import Statistics
from vla_edge.policies.processing import CameraSettings, ProcessorSettings, check_sources, read_processing
from vla_edge.policies.smolvla.backbone import read_backbone
from vla_edge.policies.smolvla.cls import settle_heads
from vla_edge.policies.smolvla.config import read_config
from vla_edge.policies.smolvla.policy import SmolVLAPolicy
from vla_edge.training.statistics import with_statistics

LM_EXPERT = "model.vlm_with_expert.lm_expert."
DELTA_EXPERT = "model.vlm_with_expert.delta_expert."


@dataclass(frozen=True)
class Fit:
    """How the policy is fitted to the data. `statistics` None keeps the checkpoint's. `rename`: policy camera → data
    key. `fields`: configuration fields to change (n_action_steps, CLS and delta options …). distill_steps: flow
    steps the policy is distilled to; 0: it is not."""

    datasets: Sequence[Dataset]
    statistics: Statistics | None
    rename: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    distill_steps: int = 0


def policy_for_training(folder: Path, fit: Fit) -> Any:
    """The checkpoint in `folder`, of any family, with the data's dimensions, cameras and statistics; new parts freshly
    initialised.

    Weights are read strictly. Errors: CheckpointError, ConfigError (a camera that the data lack), DatasetError.
    """
    folder = resolve_checkpoint(folder)
    return _as_it_is(folder, fit) if policy_class(family_of(folder)).trains_whole else _smolvla(folder, fit)


def _as_it_is(folder: Path, fit: Fit) -> Any:
    """A policy that gets no new parts and sees all its cameras. ConfigError: one is not in the data."""
    policy = load_policy(folder)
    settings = fit_settings(policy.settings, fit)
    for camera in settings.cameras:
        if camera.source not in fit.datasets[0].camera_keys:
            raise ConfigError(
                f"{fit.datasets[0].root}: no camera {camera.source}, and this policy needs all its cameras; map one of "
                f"{', '.join(fit.datasets[0].camera_keys)} with --camera {camera.name}=KEY"
            )
    fitted = type(policy)(replace(fit_config(policy.config, settings, fit), **fit.fields), settings)
    fitted.load_state_dict(policy.state_dict())
    fitted.stored_types, fitted.digest = policy.stored_types, policy.digest
    return fitted


def _smolvla(folder: Path, fit: Fit) -> SmolVLAPolicy:
    config, weights = settle_heads(read_config(folder), read_weights(folder))
    vlm = vlm_of_base(config.vlm_model_name, folder, weights.base)
    backbone_folder = vlm or find_folder(config.vlm_model_name, folder, ("config.json",))
    settings = fit_settings(read_processing(folder, config, weights.statistics, vlm), fit)
    fields = dict(fit.fields)
    if config.has_delta and not fields.get("train_delta_expert", True):
        note = "the delta expert was trained for the policy as it was before this run; train it again afterwards"
        fields |= {"holds_delta": True, "delta_relative_error": None, "notes": (*config.notes, note)}
    if fit.distill_steps and not config.distilled:
        mark = {"flow_steps": fit.distill_steps, "teacher_steps": config.num_steps, "teacher": weights.digest}
        fields |= {"num_steps": fit.distill_steps, "distilled": mark}
    config = replace(fit_config(config, settings, fit), **fields)
    torch.manual_seed(fit.seed)
    policy = SmolVLAPolicy(config, read_backbone(backbone_folder), settings)
    load_weights(policy, with_new_parts(policy, weights))
    policy.backbone_folder = backbone_folder
    return policy


def fit_config(config: Any, settings: ProcessorSettings, fit: Fit) -> Any:
    """The configuration with the data's state and action dimensions and picture sizes. ConfigError: they do not fit."""
    features = fit.datasets[0].features
    shapes = {
        STATE: features[STATE].shape,
        **{camera.name: (3, camera.height, camera.width) for camera in settings.cameras},
    }
    inputs = tuple(replace(item, shape=shapes.get(item.name, item.shape)) for item in config.input_features)
    outputs = tuple(
        replace(item, shape=features[ACTION].shape) if item.name == ACTION else item for item in config.output_features
    )
    for name, limit in ((STATE, config.max_state_dim), (ACTION, config.max_action_dim)):
        if len(features[name].shape) != 1 or features[name].shape[0] > limit:
            raise ConfigError(
                f"{name} of the data has shape {list(features[name].shape)}, the policy takes one axis of at most "
                f"{limit}"
            )
    return replace(config, input_features=inputs, output_features=outputs)


def fit_settings(settings: ProcessorSettings, fit: Fit) -> ProcessorSettings:
    """Cameras mapped to the data's keys (kept in `rename_map`), statistics replaced.

    A camera that no dataset has is kept and masked, as long as there is one. ConfigError: there is none, a camera is
    mapped to one that is not there or that another camera reads, or only some of the datasets have it.
    """
    known = [camera.name for camera in settings.cameras]
    for name in fit.rename:
        if name not in known:
            raise ConfigError(f"--camera: the policy has no camera {short_name(name)}; {nearest(name, known)}")
    if settings.relative is not None and fit.statistics is not None:
        raise ConfigError(
            "the policy's actions count from the state, the data's statistics are of actions as they are; give "
            "--statistics checkpoint"
        )
    cameras, rename = [], {}
    for camera in settings.cameras:
        source = fit.rename.get(camera.name, camera.source)
        if camera.name not in fit.rename and not any(source in dataset.camera_keys for dataset in fit.datasets):
            cameras.append(camera)  # masked: config.json of a fine-tune may declare cameras that were never there
            continue
        for dataset in fit.datasets:
            if source not in dataset.camera_keys:
                name, like = short_name(camera.name), nearest(source, dataset.camera_keys)
                raise ConfigError(
                    f"{dataset.root}: no camera {short_name(source)} for the policy's {name}; {like}; map it with "
                    f"--camera {name}=NAME"
                )
        height, width = fit.datasets[0].features[source].shape[:2]
        cameras.append(CameraSettings(camera.name, source, height, width))
        if source != camera.name:
            rename[source] = camera.name
    if not any(camera.source in fit.datasets[0].camera_keys for camera in cameras):
        ours, theirs = list(map(short_name, known)), list(map(short_name, fit.datasets[0].camera_keys))
        pairs = " ".join(f"--camera {name}={key}" for name, key in zip(ours, theirs))
        raise ConfigError(
            f"{fit.datasets[0].root}: none of the policy's cameras {', '.join(ours)}, but "
            f"{', '.join(theirs) or 'none'}; say which is which, for example {pairs or '--camera NAME=DATASET_NAME'}"
        )
    check_sources(cameras, "--camera")
    settings = replace(settings, cameras=tuple(cameras), rename_map=rename)
    return settings if fit.statistics is None else with_statistics(settings, fit.statistics)


def with_new_parts(policy: SmolVLAPolicy, weights: Weights) -> Weights:
    """`weights` with what the policy has and the file lacks: only CLS and delta parts may be new.

    The delta expert and its projections start as copies of the main expert's, but its output at zero: a fresh one
    corrects nothing. CLS parts keep their fresh values.
    """
    tensors = dict(weights.tensors)
    expected = policy.state_dict()
    for name, fresh in expected.items():
        if name in tensors:
            continue
        twin = name.replace(DELTA_EXPERT, LM_EXPERT).replace("model.delta_action_", "model.action_")
        if name.startswith("model.delta_action_out_proj."):
            tensors[name] = torch.zeros_like(fresh, dtype=torch.float32, device="cpu")
        elif twin != name and twin in tensors:
            tensors[name] = tensors[twin].float().clone()
        elif "cls" in name:
            tensors[name] = fresh.detach().clone()
    return replace(weights, tensors=tensors)
