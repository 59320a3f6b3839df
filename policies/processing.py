"""What happens around the network, as plain numbers without torch.

`policy_preprocessor.json` and `policy_postprocessor.json` are authoritative;
a checkpoint without them falls back to config.json and the normalisation
buffers older LeRobot versions kept in the model file (POLICY.md §1.4, §1.14).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from vla_edge.errors import CheckpointError, ConfigError
from vla_edge.policies.backbone import find_file, read_json
from vla_edge.policies.config import ACTION, STATE, SmolVLAConfig

PREPROCESSOR = "policy_preprocessor"
POSTPROCESSOR = "policy_postprocessor"
EPS = 1e-8

Statistics = Mapping[str, Mapping[str, NDArray[np.float32]]]

MODES: dict[str, tuple[str, ...]] = {
    "IDENTITY": (),
    "MEAN_STD": ("mean", "std"),
    "MIN_MAX": ("min", "max"),
    "QUANTILES": ("q01", "q99"),
    "QUANTILE10": ("q10", "q90"),
}
"""Normalisation modes and the two statistics each needs; the last three map [low, high] to [−1, 1]."""


@dataclass(frozen=True, slots=True)
class CameraSettings:
    """A camera in slot order. `name`: the policy's key; `source`: its key before `rename_map`; size in pixels."""

    name: str
    source: str
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class TokenizerSettings:
    """How the task becomes ids. `folder` holds tokenizer.json; `name` is what the checkpoint calls it.
    padding: "longest" (none at batch 1) or "max_length"; sides: "left" or "right"."""

    name: str
    folder: Path
    max_length: int
    padding: str
    padding_side: str
    truncation_side: str
    pad_id: int
    append_newline: bool


@dataclass(frozen=True, slots=True)
class Normalization:
    """How one feature is normalised. `mode` is MEAN_STD, MIN_MAX (quantiles included) or IDENTITY; `low` and `high` are
    mean and std, or minimum and maximum, float32 [dimensions]; `eps` keeps divisors from being zero."""

    feature: str
    mode: str
    eps: float
    low: NDArray[np.float32]
    high: NDArray[np.float32]


@dataclass(frozen=True)
class ProcessorSettings:
    """Everything between an observation and the network, and back.

    action: turns normalised actions into robot units; action_target: normalises recorded actions for training.
    statistics: all that the checkpoint holds, written back on saving.
    """

    cameras: tuple[CameraSettings, ...]
    rename_map: Mapping[str, str]
    tokenizer: TokenizerSettings
    state: Normalization
    action: Normalization
    action_target: Normalization
    normalization_mapping: Mapping[str, str]
    eps: float
    statistics: Statistics
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Normalizer:
    """A normalizer or unnormalizer step: modes by feature type, epsilon, statistics by feature."""

    modes: Mapping[str, str]
    eps: float
    statistics: Statistics


def read_processing(folder: Path, config: SmolVLAConfig, buffers: Mapping[str, NDArray[np.float32]]) -> ProcessorSettings:
    """The settings of the checkpoint in `folder`.

    buffers: an older checkpoint's normalisation buffers by key. Errors: CheckpointError (unknown step, missing or
    damaged statistics, no tokenizer), ConfigError (a setting that is not supported).
    """
    before, after = (_steps(folder / f"{name}.json") for name in (PREPROCESSOR, POSTPROCESSOR))
    if (before is None) != (after is None):
        lost = PREPROCESSOR if before is None else POSTPROCESSOR
        raise CheckpointError(f"{folder / lost}.json: missing although its counterpart is there; copy the checkpoint again")
    if before is None or after is None:
        normalizer = unnormalizer = _Normalizer(config.normalization_mapping, EPS, _old_statistics(folder, buffers))
        before = {}
        newline = True
    else:
        normalizer = _normalizer(folder, before.get("normalizer_processor"), config)
        unnormalizer = _normalizer(folder, after.get("unnormalizer_processor"), config)
        newline = "smolvla_new_line_processor" in before
    for steps, name in ((before, PREPROCESSOR), (after or {}, POSTPROCESSOR)):
        _check_device(steps.get("device_processor"), folder / f"{name}.json")
    rename = _rename_map(before.get("rename_observations_processor"), folder)
    notes: list[str] = []
    state = _normalization(STATE, "STATE", config.state_dim, normalizer, folder, notes)
    action = _normalization(ACTION, "ACTION", config.action_dim, unnormalizer, folder, notes)
    target = _normalization(ACTION, "ACTION", config.action_dim, normalizer, folder, [])
    if normalizer.modes.get("VISUAL", "IDENTITY") != "IDENTITY":
        raise ConfigError(f"{folder}: normalization mode of VISUAL is {normalizer.modes['VISUAL']!r}, supported is IDENTITY; SmolVLA scales pictures itself")
    return ProcessorSettings(
        cameras=_cameras(config, rename, folder),
        rename_map=rename,
        tokenizer=_tokenizer(folder, config, before.get("tokenizer_processor"), newline),
        state=state,
        action=action,
        action_target=target,
        normalization_mapping=dict(normalizer.modes),
        eps=normalizer.eps,
        statistics={**normalizer.statistics, **{ACTION: unnormalizer.statistics[ACTION] for _ in (0,) if ACTION in unnormalizer.statistics}},
        notes=tuple(notes),
    )


_KNOWN_STEPS = {
    PREPROCESSOR: (
        "rename_observations_processor",
        "to_batch_processor",
        "smolvla_new_line_processor",
        "tokenizer_processor",
        "device_processor",
        "normalizer_processor",
    ),
    POSTPROCESSOR: ("unnormalizer_processor", "device_processor"),
}


def _steps(file: Path) -> dict[str, dict[str, Any]] | None:
    """The steps of one processor file by registry name, or None when there is no file."""
    if not file.is_file():
        return None
    content = read_json(file)
    known = _KNOWN_STEPS[file.stem]
    steps: dict[str, dict[str, Any]] = {}
    for index, step in enumerate(content.get("steps") or ()):
        name = step.get("registry_name") or step.get("class") if isinstance(step, dict) else None
        if name not in known:
            raise CheckpointError(f"{file}: step {index} is {name!r}, known are {', '.join(known)}; export the policy without that step")
        steps[name] = {**(step.get("config") or {}), "state_file": step.get("state_file")}
    return steps


def _normalizer(folder: Path, step: Mapping[str, Any] | None, config: SmolVLAConfig) -> _Normalizer:
    if step is None:
        return _Normalizer({}, EPS, {})
    name = step.get("state_file")
    statistics = _read_statistics(folder / name) if name else {}
    return _Normalizer(step.get("norm_map", config.normalization_mapping), float(step.get("eps", EPS)), statistics)


def _read_statistics(file: Path) -> Statistics:
    if not file.is_file():
        raise CheckpointError(f"{file}: statistics are missing; copy the checkpoint again")
    try:
        flat = load_file(file)
    except SafetensorError as error:
        raise CheckpointError(f"{file}: truncated or damaged ({error}); copy the checkpoint again") from None
    statistics: dict[str, dict[str, NDArray[np.float32]]] = {}
    for name, value in flat.items():
        feature, _, statistic = name.rpartition(".")
        statistics.setdefault(feature, {})[statistic] = value.astype(np.float32)
    return statistics


def _old_statistics(folder: Path, buffers: Mapping[str, NDArray[np.float32]]) -> Statistics:
    """Statistics of `normalize_inputs.buffer_observation_state.mean` and its like."""
    statistics: dict[str, dict[str, NDArray[np.float32]]] = {}
    for feature, owner in ((STATE, "normalize_inputs"), (ACTION, "unnormalize_outputs")):
        stem = f"{owner}.buffer_{feature.replace('.', '_')}."
        found = {name.removeprefix(stem): value for name, value in buffers.items() if name.startswith(stem)}
        if found:
            statistics[feature] = found
    if not statistics:
        raise CheckpointError(
            f"{folder}: no statistics: neither {PREPROCESSOR}.json nor normalize_inputs buffers in the model file; "
            "add the processor files that LeRobot's migration writes"
        )
    return statistics


def _normalization(feature: str, kind: str, size: int, step: _Normalizer, folder: Path, notes: list[str]) -> Normalization:
    mode = step.modes.get(kind, "IDENTITY")
    if mode not in MODES:
        raise ConfigError(f"{folder}: normalization mode of {kind} is {mode!r}, known are {', '.join(MODES)}")
    names = MODES[mode]
    if names and feature not in step.statistics:
        notes.append(f"{feature} has no statistics and passes unchanged although its mode is {mode}")
    if not names or feature not in step.statistics:
        return Normalization(feature, "IDENTITY", step.eps, np.zeros(size, np.float32), np.ones(size, np.float32))
    pair = []
    for name in names:
        value = step.statistics[feature].get(name)
        if value is None:
            raise CheckpointError(f"{folder}: statistics of {feature} lack {name}, which mode {mode} needs; save the policy with its statistics")
        if value.shape != (size,):
            raise CheckpointError(f"{folder}: statistic {feature}.{name} has shape {list(value.shape)}, the feature has [{size}]")
        if not np.isfinite(value).all():
            raise CheckpointError(f"{folder}: statistic {feature}.{name} is not finite; the policy was saved before it saw data")
        pair.append(np.ascontiguousarray(value, dtype=np.float32))
    return Normalization(feature, "MEAN_STD" if mode == "MEAN_STD" else "MIN_MAX", step.eps, pair[0], pair[1])


def _rename_map(step: Mapping[str, Any] | None, folder: Path) -> dict[str, str]:
    rename = (step or {}).get("rename_map", {})
    if not isinstance(rename, dict) or len(set(rename.values())) != len(rename):
        raise ConfigError(f"{folder / PREPROCESSOR}.json: rename_map {rename!r} must give each source its own target")
    return dict(rename)


def _cameras(config: SmolVLAConfig, rename: Mapping[str, str], folder: Path) -> tuple[CameraSettings, ...]:
    names = {item.name for item in (*config.input_features, *config.output_features)}
    for source, target in rename.items():
        if target not in names:
            raise ConfigError(f"{folder / PREPROCESSOR}.json: rename_map sends {source} to {target}, which is no feature of the policy")
    sources = {target: source for source, target in rename.items()}
    return tuple(CameraSettings(item.name, sources.get(item.name, item.name), item.shape[1], item.shape[2]) for item in config.cameras)


def _check_device(step: Mapping[str, Any] | None, file: Path) -> None:
    if step and step.get("float_dtype") not in (None, "float32"):
        raise ConfigError(f"{file}: device_processor.float_dtype is {step['float_dtype']!r}, supported is float32")


def _tokenizer(folder: Path, config: SmolVLAConfig, step: Mapping[str, Any] | None, newline: bool) -> TokenizerSettings:
    values = step or {
        "tokenizer_name": config.vlm_model_name,
        "max_length": config.tokenizer_max_length,
        "padding": config.pad_language_to,
        "padding_side": "right",
    }
    where = folder / f"{PREPROCESSOR}.json"
    padding = {True: "longest", False: "longest", "do_not_pad": "longest"}.get(values.get("padding", "max_length"), values.get("padding", "max_length"))
    side, length = values.get("padding_side", "right"), values.get("max_length", 512)
    for field, value, holds, limit in (
        ("padding", padding, padding in ("longest", "max_length"), "longest or max_length"),
        ("padding_side", side, side in ("left", "right"), "left or right"),
        ("max_length", length, isinstance(length, int) and length >= 1, "a positive whole number"),
        ("truncation", values.get("truncation", True), values.get("truncation", True) is True, "true"),
        ("task_key", values.get("task_key", "task"), values.get("task_key", "task") == "task", "task"),
    ):
        if not holds:
            raise ConfigError(f"{where}: tokenizer_processor.{field} is {value!r}, must be {limit}")
    name = values.get("tokenizer_name") or config.vlm_model_name
    place = find_file(name, folder, ("tokenizer.json", "tokenizer_config.json"))
    details = read_json(place / "tokenizer_config.json")
    return TokenizerSettings(
        name=name,
        folder=place,
        max_length=length,
        padding=padding,
        padding_side=side,
        truncation_side=details.get("truncation_side", "right"),
        pad_id=token_id(place, _content(details.get("pad_token")), "pad_token"),
        append_newline=newline,
    )


def special_token_names(folder: Path) -> tuple[str, str]:
    """The tokens put around pictures: (around, global), as tokenizer_config.json names them."""
    details = read_json(folder / "tokenizer_config.json")
    extra = {**details, **(details.get("extra_special_tokens") or {})}
    around = _content(extra.get("fake_image_token")) or "<fake_token_around_image>"
    return around, _content(extra.get("global_image_token")) or "<global-img>"


def token_id(folder: Path, token: str | None, role: str) -> int:
    """Id of a token in `folder/tokenizer.json`; CheckpointError when it is not there."""
    content = read_json(folder / "tokenizer.json")
    for item in content.get("added_tokens") or ():
        if item.get("content") == token:
            return int(item["id"])
    vocabulary = (content.get("model") or {}).get("vocab") or {}
    if isinstance(vocabulary, dict) and token in vocabulary:
        return int(vocabulary[token])
    raise CheckpointError(f"{folder / 'tokenizer.json'}: {role} {token!r} is not in the vocabulary; use the policy's own tokenizer")


def _content(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token
