# SPDX-License-Identifier: Apache-2.0
"""What happens around the network, as plain numbers without torch.

`policy_preprocessor.json` and `policy_postprocessor.json` are authoritative;
a checkpoint without them falls back to config.json and the normalisation
buffers older LeRobot versions kept in the model file (docs/policy.md §1.4, §1.14).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_edge.errors import CheckpointError, ConfigError
from vla_edge.fields import take
from vla_edge.policies.checkpoint_folder import read_json
from vla_edge.policies.features import ACTION, STATE, PolicyConfig
from vla_edge.policies.normalization import (
    EPS,
    Normalization,
    NormalizerStep,
    Statistics,
    normalization,
    of_the_right_length,
    old_statistics,
    read_statistics,
)
from vla_edge.policies.tokenizer_settings import TokenizerSettings, read_tokenizer

PREPROCESSOR = "policy_preprocessor"
POSTPROCESSOR = "policy_postprocessor"


@dataclass(frozen=True, slots=True)
class CameraSettings:
    """A camera in slot order. `name`: the policy's key; `source`: its key before `rename_map`; size in pixels."""

    name: str
    source: str
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class RelativeActions:
    """Actions that are counted from the state of the observation they were planned from, in robot units.

    joints: indices of the actions concerned. The names are LeRobot's settings: an action is left out when its name
    holds one of `exclude_joints`, in any case.
    """

    joints: tuple[int, ...]
    exclude_joints: tuple[str, ...]
    action_names: tuple[str, ...]


@dataclass(frozen=True)
class ProcessorSettings:
    """Everything between an observation and the network, and back.

    pictures: one a camera, for a family that does not scale pictures itself, of channels in 0..1. action: turns
    normalised actions into robot units; action_target: normalises recorded actions for training.
    statistics: all that the checkpoint holds, written back on saving. unknown_outputs: why nobody knows in what units
    the actions come out, empty where they are known. tokenizer: None where the policy reads no task.
    """

    cameras: tuple[CameraSettings, ...]
    rename_map: Mapping[str, str]
    tokenizer: TokenizerSettings | None
    state: Normalization
    action: Normalization
    action_target: Normalization
    normalization_mapping: Mapping[str, str]
    eps: float
    statistics: Statistics
    pictures: tuple[Normalization, ...] = ()
    relative: RelativeActions | None = None
    unknown_outputs: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Pipelines:
    """Both processor files, understood. absent: a note for each step that LeRobot's files have and these do not."""

    normalizer: NormalizerStep
    unnormalizer: NormalizerStep
    rename_map: Mapping[str, str]
    tokenizer: Mapping[str, Any] | None
    append_newline: bool
    vlm: Path | None = None
    relative: RelativeActions | None = None
    absent: tuple[str, ...] = ()


def read_processing(
    folder: Path, config: PolicyConfig, buffers: Mapping[str, NDArray[np.float32]], vlm: Path | None = None
) -> ProcessorSettings:
    """The settings of the checkpoint in `folder`.

    buffers: an older checkpoint's normalisation buffers by key. vlm: the tokenizer's folder, None to look where the
    checkpoint says. Errors: CheckpointError (unknown step, missing or damaged statistics, no tokenizer), ConfigError
    (a setting that is not supported).
    """
    before, after = (_steps(folder / f"{name}.json") for name in (PREPROCESSOR, POSTPROCESSOR))
    if (before is None) != (after is None):
        lost = PREPROCESSOR if before is None else POSTPROCESSOR
        raise CheckpointError(
            f"{folder / lost}.json: missing although its counterpart is there; copy the checkpoint again"
        )
    kept = old_statistics(folder, buffers, [camera.name for camera in config.cameras])
    if before is None or after is None:
        if not kept:
            raise CheckpointError(
                f"{folder}: no statistics: neither policy_preprocessor.json nor normalize_inputs buffers in the model "
                "file; add the processor files that LeRobot's migration writes"
            )
        step = NormalizerStep(config.normalization_mapping, EPS, kept)
        return _assemble(folder, config, _Pipelines(step, step, {}, config.tokenizer_step, True, vlm))
    for steps, name in ((before, PREPROCESSOR), (after, POSTPROCESSOR)):
        _check_device(steps.get("device_processor", {}), folder / f"{name}.json")
    _check_covers_inputs(before.get("normalizer_processor", {}), config, folder / f"{PREPROCESSOR}.json")
    pipelines = _Pipelines(
        normalizer=_normalizer(folder, before.get("normalizer_processor"), config, kept),
        unnormalizer=_normalizer(folder, after.get("unnormalizer_processor"), config, kept),
        rename_map=_rename_map(before.get("rename_observations_processor", {}), folder),
        tokenizer=_tokenizer_step(before.get("tokenizer_processor"), config),
        append_newline="smolvla_new_line_processor" in before,
        vlm=vlm,
        relative=_relative(folder, before, after, config),
        absent=(*_absent(PREPROCESSOR, before, config), *_absent(POSTPROCESSOR, after, config)),
    )
    return _assemble(folder, config, pipelines)


def default_processing(
    folder: Path, config: PolicyConfig, statistics: Statistics, rename_map: Mapping[str, str] | None = None
) -> ProcessorSettings:
    """The settings config.json alone implies, with these statistics; `folder` holds or names the tokenizer."""
    step = NormalizerStep(config.normalization_mapping, EPS, statistics)
    return _assemble(folder, config, _Pipelines(step, step, rename_map or {}, config.tokenizer_step, True))


def _assemble(folder: Path, config: PolicyConfig, found: _Pipelines) -> ProcessorSettings:
    modes = found.normalizer.modes
    if modes.get("VISUAL", "IDENTITY") not in config.picture_modes:
        raise ConfigError(
            f"{folder}: normalization mode of VISUAL is {modes['VISUAL']!r}, this policy takes "
            f"{' or '.join(config.picture_modes)}; save it with that mode"
        )
    state = normalization(STATE, "STATE", config.state_dim, found.normalizer, folder)
    action = normalization(ACTION, "ACTION", config.action_dim, found.unnormalizer, folder)
    pictures = tuple(normalization(item.name, "VISUAL", 3, found.normalizer, folder) for item in config.cameras)
    return ProcessorSettings(
        cameras=_cameras(config, found.rename_map, folder),
        rename_map=dict(found.rename_map),
        tokenizer=None
        if found.tokenizer is None
        else read_tokenizer(folder, found.tokenizer, found.append_newline, found.vlm),
        state=state,
        action=action,
        action_target=normalization(ACTION, "ACTION", config.action_dim, found.normalizer, folder),
        normalization_mapping=dict(modes),
        eps=found.normalizer.eps,
        statistics={**found.normalizer.statistics, **found.unnormalizer.statistics},
        pictures=pictures,
        relative=found.relative,
        unknown_outputs=_unknown_outputs(action, config, found),
        notes=(
            *found.absent,
            *_passes_unchanged(state, modes.get("STATE", "IDENTITY")),
            *(note for item in pictures for note in _passes_unchanged(item, modes.get("VISUAL", "IDENTITY"))),
        ),
    )


def _passes_unchanged(item: Normalization, mode: str) -> Iterator[str]:
    if item.mode == "IDENTITY" and mode != "IDENTITY":
        yield f"{item.feature} has no statistics and passes unchanged although its mode is {mode}"


def _unknown_outputs(action: Normalization, config: PolicyConfig, found: _Pipelines) -> str:
    """Why the actions are no robot units: their mode asks for statistics and there are none."""
    mode = found.unnormalizer.modes.get("ACTION") or config.normalization_mapping.get("ACTION", "IDENTITY")
    if action.mode != "IDENTITY" or mode == "IDENTITY":
        return ""
    there = {**found.normalizer.statistics, **found.unnormalizer.statistics}
    names = ", ".join(of_the_right_length(there, config.action_dim)) or "none"
    return (
        f"{ACTION} has mode {mode} and no statistics in {POSTPROCESSOR}.json; of its length ({config.action_dim}) "
        f"are there: {names}"
    )


_KNOWN_STEPS = {
    PREPROCESSOR: {
        "rename_observations_processor": "RenameObservationsProcessorStep",
        "to_batch_processor": "AddBatchDimensionProcessorStep",
        "smolvla_new_line_processor": "SmolVLANewLineProcessor",
        "tokenizer_processor": "TokenizerProcessorStep",
        "device_processor": "DeviceProcessorStep",
        "relative_actions_processor": "RelativeActionsProcessorStep",
        "normalizer_processor": "NormalizerProcessorStep",
    },
    POSTPROCESSOR: {
        "unnormalizer_processor": "UnnormalizerProcessorStep",
        "absolute_actions_processor": "AbsoluteActionsProcessorStep",
        "device_processor": "DeviceProcessorStep",
    },
}
"""Steps by registry name, and the class that a file may name in its place."""


def _steps(file: Path) -> dict[str, dict[str, Any]] | None:
    """The steps of one processor file by registry name, or None when there is no file."""
    if not file.is_file():
        return None
    content = read_json(file)
    known = _KNOWN_STEPS[file.stem]
    steps: dict[str, dict[str, Any]] = {}
    if content.get("steps") is None:
        raise CheckpointError(f"{file}: steps are missing; copy the checkpoint again")
    listed: list[Any] = take(content, "steps", [], file)
    for index, step in enumerate(listed):
        name = step.get("registry_name") or step.get("class") if isinstance(step, dict) else None
        of_class = str(name).rpartition(".")[2]
        key = next((key for key, kind in known.items() if of_class in (key, kind)), None)
        if key is None:
            raise CheckpointError(
                f"{file}: step {index} is {name!r}, known are {', '.join(known)}; export the policy without that step"
            )
        if key in steps:
            raise CheckpointError(
                f"{file}: step {index} is a second {key}, each may stand there once; save the policy with one of them"
            )
        settings: dict[str, Any] = take(step, "config", {}, f"{file}: step {index}")
        steps[key] = {**settings, "state_file": step.get("state_file")}
    return steps


_WITHOUT = {
    PREPROCESSOR: {
        "normalizer_processor": f"{STATE} passes unchanged",
        "smolvla_new_line_processor": "no newline is added to the task",
        "tokenizer_processor": "tokens are made as config.json says",
    },
    POSTPROCESSOR: {"unnormalizer_processor": f"{ACTION} passes unchanged"},
}
"""What it means that a step is not there."""
_LANGUAGE = ("smolvla_new_line_processor", "tokenizer_processor")


def _absent(name: str, steps: Mapping[str, Any], config: PolicyConfig) -> Iterator[str]:
    for step, meaning in _WITHOUT[name].items():
        if step not in steps and (step not in _LANGUAGE or config.tokenizer_step is not None):
            yield f"{name}.json has no {step}: {meaning}"


def _tokenizer_step(step: Mapping[str, Any] | None, config: PolicyConfig) -> Mapping[str, Any] | None:
    """The step of the file, its tokenizer that of the configuration where it names none."""
    implied = config.tokenizer_step
    if step is None or implied is None:
        return implied
    return {"tokenizer_name": implied["tokenizer_name"], **step}


def _normalizer(folder: Path, step: Mapping[str, Any] | None, config: PolicyConfig, kept: Statistics) -> NormalizerStep:
    """The step of a processor file; `kept`: the model file's own buffers, for what the step's file lacks."""
    if step is None:
        return NormalizerStep({}, EPS, {})
    name = take(step, "state_file", "", folder)
    statistics = {**kept, **(read_statistics(folder / name) if name else {})}
    return NormalizerStep(
        take(step, "norm_map", dict(config.normalization_mapping), folder), take(step, "eps", EPS, folder), statistics
    )


def _rename_map(step: Mapping[str, Any], folder: Path) -> dict[str, str]:
    rename: dict[str, str] = take(step, "rename_map", {}, folder / PREPROCESSOR)
    if not all(isinstance(target, str) for target in rename.values()) or len(set(rename.values())) != len(rename):
        raise ConfigError(f"{folder / PREPROCESSOR}.json: rename_map {rename!r} must give each source its own target")
    return dict(rename)


def _cameras(config: PolicyConfig, rename: Mapping[str, str], folder: Path) -> tuple[CameraSettings, ...]:
    sources = {target: source for source, target in rename.items()}
    cameras = tuple(
        CameraSettings(item.name, sources.get(item.name, item.name), item.shape[1], item.shape[2])
        for item in config.cameras
    )
    check_sources(cameras, f"{folder / PREPROCESSOR}.json: rename_map")
    return cameras


def check_sources(cameras: Sequence[CameraSettings], where: str) -> None:
    """ConfigError when two cameras of the policy read one source: the second would show what the first does."""
    taken: dict[str, str] = {}
    for camera in cameras:
        if camera.source in taken:
            raise ConfigError(
                f"{where} gives {camera.source} to both {taken[camera.source]} and {camera.name}; give each its own "
                "camera, one that is not there is left out"
            )
        taken[camera.source] = camera.name


def _relative(
    folder: Path, before: Mapping[str, Any], after: Mapping[str, Any], config: PolicyConfig
) -> RelativeActions | None:
    """Relative actions where both steps are enabled. ConfigError when only one is: LeRobot refuses that too."""
    steps = (before.get("relative_actions_processor", {}), after.get("absolute_actions_processor", {}))
    enabled = [take(step, "enabled", False, folder) for step in steps]
    if not any(enabled):
        return None
    if not all(enabled):
        raise ConfigError(
            f"{folder}: relative_actions_processor and absolute_actions_processor must be enabled together; one is not"
        )
    excluded: list[str] = take(steps[0], "exclude_joints", [], folder)
    names: list[str] = take(steps[0], "action_names", [], folder)
    words = [str(word).lower() for word in excluded if word]
    if words and len(names) != config.action_dim:
        raise ConfigError(
            f"{folder}: relative_actions_processor.action_names has {len(names)} names, the policy {config.action_dim} "
            "actions: nobody knows which exclude_joints are meant"
        )
    if config.state_dim < config.action_dim:
        raise ConfigError(
            f"{folder}: relative actions need a state of the action's {config.action_dim} dimensions, it has "
            f"{config.state_dim}"
        )
    joints = tuple(
        index
        for index in range(config.action_dim)
        if not words or not any(word in str(names[index]).lower() for word in words)
    )
    return RelativeActions(joints, tuple(map(str, excluded)), tuple(map(str, names)))


def _check_device(step: Mapping[str, Any], file: Path) -> None:
    if step.get("float_dtype") not in (None, "float32"):
        raise ConfigError(f"{file}: device_processor.float_dtype is {step['float_dtype']!r}, supported is float32")


def _check_covers_inputs(step: Mapping[str, Any], config: PolicyConfig, file: Path) -> None:
    """LeRobot normalises the observations that the step's `features` and `normalize_observation_keys` list, no
    others."""
    modes = take(step, "norm_map", dict(config.normalization_mapping), file)
    pictures = [item.name for item in config.cameras] if modes.get("VISUAL", "IDENTITY") != "IDENTITY" else []
    for name, kind in {STATE: "STATE", **dict.fromkeys(pictures, "VISUAL")}.items():
        listed = take(step, "features", {name: {"type": kind}}, file).get(name)
        if not isinstance(listed, dict) or listed.get("type") != kind:
            raise ConfigError(
                f"{file}: normalizer_processor.features must list {name} with type {kind}; give its norm_map {kind} "
                "IDENTITY instead of leaving it out"
            )
        keys = step.get("normalize_observation_keys")
        if keys is not None and (not isinstance(keys, list) or name not in keys):
            raise ConfigError(
                f"{file}: normalizer_processor.normalize_observation_keys is {keys!r}, must hold {name} or be null; "
                f"give norm_map {kind} IDENTITY instead"
            )
