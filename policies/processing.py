"""What happens around the network, as plain numbers without torch.

`policy_preprocessor.json` and `policy_postprocessor.json` are authoritative;
a checkpoint without them falls back to config.json and the normalisation
buffers older LeRobot versions kept in the model file (POLICY.md §1.4, §1.14).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_edge.errors import CheckpointError, ConfigError
from vla_edge.policies.json_fields import read_json, take, take_positive
from vla_edge.policies.normalization import (
    EPS,
    Normalization,
    NormalizerStep,
    Statistics,
    normalization,
    old_statistics,
    read_statistics,
)
from vla_edge.policies.smolvla.backbone import find_folder, given_folder
from vla_edge.policies.smolvla.config import ACTION, STATE, SmolVLAConfig

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
class _Pipelines:
    """Both processor files, understood. absent: a note for each step that LeRobot's files have and these do not."""

    normalizer: NormalizerStep
    unnormalizer: NormalizerStep
    rename_map: Mapping[str, str]
    tokenizer: Mapping[str, Any]
    append_newline: bool
    vlm: Path | None = None
    absent: tuple[str, ...] = ()


def read_processing(
    folder: Path, config: SmolVLAConfig, buffers: Mapping[str, NDArray[np.float32]], vlm: Path | None = None
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
    if before is None or after is None:
        step = NormalizerStep(config.normalization_mapping, EPS, old_statistics(folder, buffers))
        return _assemble(folder, config, _Pipelines(step, step, {}, _default_tokenizer(config), True, vlm))
    for steps, name in ((before, PREPROCESSOR), (after, POSTPROCESSOR)):
        _check_device(steps.get("device_processor", {}), folder / f"{name}.json")
    _check_covers_state(before.get("normalizer_processor", {}), folder / f"{PREPROCESSOR}.json")
    pipelines = _Pipelines(
        normalizer=_normalizer(folder, before.get("normalizer_processor"), config),
        unnormalizer=_normalizer(folder, after.get("unnormalizer_processor"), config),
        rename_map=_rename_map(before.get("rename_observations_processor", {}), folder),
        tokenizer=before.get("tokenizer_processor") or _default_tokenizer(config),
        append_newline="smolvla_new_line_processor" in before,
        vlm=vlm,
        absent=(*_absent(PREPROCESSOR, before), *_absent(POSTPROCESSOR, after)),
    )
    return _assemble(folder, config, pipelines)


def default_processing(
    folder: Path, config: SmolVLAConfig, statistics: Statistics, rename_map: Mapping[str, str] | None = None
) -> ProcessorSettings:
    """The settings config.json alone implies, with these statistics; `folder` holds or names the tokenizer."""
    step = NormalizerStep(config.normalization_mapping, EPS, statistics)
    return _assemble(folder, config, _Pipelines(step, step, rename_map or {}, _default_tokenizer(config), True))


def _assemble(folder: Path, config: SmolVLAConfig, found: _Pipelines) -> ProcessorSettings:
    modes = found.normalizer.modes
    if modes.get("VISUAL", "IDENTITY") != "IDENTITY":
        raise ConfigError(
            f"{folder}: normalization mode of VISUAL is {modes['VISUAL']!r}, supported is IDENTITY; SmolVLA scales "
            "pictures itself"
        )
    state = normalization(STATE, "STATE", config.state_dim, found.normalizer, folder)
    action = normalization(ACTION, "ACTION", config.action_dim, found.unnormalizer, folder)
    wanted = ((state, found.normalizer.modes.get("STATE")), (action, found.unnormalizer.modes.get("ACTION")))
    return ProcessorSettings(
        cameras=_cameras(config, found.rename_map, folder),
        rename_map=dict(found.rename_map),
        tokenizer=_tokenizer(folder, config, found),
        state=state,
        action=action,
        action_target=normalization(ACTION, "ACTION", config.action_dim, found.normalizer, folder),
        normalization_mapping=dict(modes),
        eps=found.normalizer.eps,
        statistics={**found.normalizer.statistics, **found.unnormalizer.statistics},
        notes=(
            *found.absent,
            *(
                f"{item.feature} has no statistics and passes unchanged although its mode is {mode}"
                for item, mode in wanted
                if item.mode == "IDENTITY" and mode not in (None, "IDENTITY")
            ),
        ),
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
    if content.get("steps") is None:
        raise CheckpointError(f"{file}: steps are missing; copy the checkpoint again")
    listed: list[Any] = take(content, "steps", [], file)
    for index, step in enumerate(listed):
        name = step.get("registry_name") or step.get("class") if isinstance(step, dict) else None
        if name not in known:
            raise CheckpointError(
                f"{file}: step {index} is {name!r}, known are {', '.join(known)}; export the policy without that step"
            )
        if name in steps:
            raise CheckpointError(
                f"{file}: step {index} is a second {name}, each may stand there once; save the policy with one of them"
            )
        settings: dict[str, Any] = take(step, "config", {}, f"{file}: step {index}")
        steps[name] = {**settings, "state_file": step.get("state_file")}
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


def _absent(name: str, steps: Mapping[str, Any]) -> Iterator[str]:
    return (f"{name}.json has no {step}: {meaning}" for step, meaning in _WITHOUT[name].items() if step not in steps)


def _normalizer(folder: Path, step: Mapping[str, Any] | None, config: SmolVLAConfig) -> NormalizerStep:
    if step is None:
        return NormalizerStep({}, EPS, {})
    name = take(step, "state_file", "", folder)
    statistics = read_statistics(folder / name) if name else {}
    return NormalizerStep(
        take(step, "norm_map", dict(config.normalization_mapping), folder), take(step, "eps", EPS, folder), statistics
    )


def _rename_map(step: Mapping[str, Any], folder: Path) -> dict[str, str]:
    rename: dict[str, str] = take(step, "rename_map", {}, folder / PREPROCESSOR)
    if not all(isinstance(target, str) for target in rename.values()) or len(set(rename.values())) != len(rename):
        raise ConfigError(f"{folder / PREPROCESSOR}.json: rename_map {rename!r} must give each source its own target")
    return dict(rename)


def _cameras(config: SmolVLAConfig, rename: Mapping[str, str], folder: Path) -> tuple[CameraSettings, ...]:
    names = {item.name for item in (*config.input_features, *config.output_features)}
    for source, target in rename.items():
        if target not in names:
            raise ConfigError(
                f"{folder / PREPROCESSOR}.json: rename_map sends {source} to {target}, which is no feature of the "
                "policy"
            )
    sources = {target: source for source, target in rename.items()}
    return tuple(
        CameraSettings(item.name, sources.get(item.name, item.name), item.shape[1], item.shape[2])
        for item in config.cameras
    )


def _check_device(step: Mapping[str, Any], file: Path) -> None:
    if step.get("float_dtype") not in (None, "float32"):
        raise ConfigError(f"{file}: device_processor.float_dtype is {step['float_dtype']!r}, supported is float32")


def _check_covers_state(step: Mapping[str, Any], file: Path) -> None:
    """LeRobot normalises the observations that the step's `features` and `normalize_observation_keys` list, no
    others."""
    kind = take(step, "features", {STATE: {"type": "STATE"}}, file).get(STATE)
    if not isinstance(kind, dict) or kind.get("type") != "STATE":
        raise ConfigError(
            f"{file}: normalizer_processor.features must list {STATE} with type STATE; give its norm_map STATE "
            "IDENTITY instead of leaving it out"
        )
    keys = step.get("normalize_observation_keys")
    if keys is not None and (not isinstance(keys, list) or STATE not in keys):
        raise ConfigError(
            f"{file}: normalizer_processor.normalize_observation_keys is {keys!r}, must hold {STATE} or be null; "
            "give norm_map STATE IDENTITY instead"
        )


def _default_tokenizer(config: SmolVLAConfig) -> dict[str, Any]:
    return {
        "tokenizer_name": config.vlm_model_name,
        "max_length": config.tokenizer_max_length,
        "padding": config.pad_language_to,
        "padding_side": "right",
    }


def _tokenizer(folder: Path, config: SmolVLAConfig, found: _Pipelines) -> TokenizerSettings:
    values = found.tokenizer
    where = folder / f"{PREPROCESSOR}.json"
    given = values.get("padding", "max_length")
    padding = "longest" if given in (True, False, "do_not_pad") else given
    side, length = values.get("padding_side", "right"), take_positive(values, "max_length", 512, where)
    for field, value, holds, limit in (
        ("padding", padding, padding in ("longest", "max_length"), "longest or max_length"),
        ("padding_side", side, side in ("left", "right"), "left or right"),
        ("truncation", values.get("truncation", True), values.get("truncation", True) is True, "true"),
        ("task_key", values.get("task_key", "task"), values.get("task_key", "task") == "task", "task"),
    ):
        if not holds:
            raise ConfigError(f"{where}: tokenizer_processor.{field} is {value!r}, must be {limit}")
    name = take(values, "tokenizer_name", config.vlm_model_name, where)
    files = ("tokenizer.json", "tokenizer_config.json")
    place = find_folder(name, folder, files) if found.vlm is None else given_folder(found.vlm, files)
    details = read_json(place / "tokenizer_config.json")
    cut = take(details, "truncation_side", "right", place / "tokenizer_config.json")
    if cut not in ("left", "right"):
        raise ConfigError(f"{place / 'tokenizer_config.json'}: truncation_side is {cut!r}, must be left or right")
    return TokenizerSettings(
        name=name,
        folder=place,
        max_length=length,
        padding=padding,
        padding_side=side,
        truncation_side=cut,
        pad_id=token_id(place, _content(details.get("pad_token")), "pad_token"),
        append_newline=found.append_newline,
    )


def special_token_names(folder: Path) -> tuple[str, str]:
    """The tokens put around pictures: (around, global), as tokenizer_config.json names them."""
    details = read_json(folder / "tokenizer_config.json")
    named = details.get("extra_special_tokens")  # a list in some tokenizers: then it names no roles
    extra = {**details, **(named if isinstance(named, dict) else {})}
    around = _content(extra.get("fake_image_token")) or "<fake_token_around_image>"
    return around, _content(extra.get("global_image_token")) or "<global-img>"


def token_id(folder: Path, token: object, role: str) -> int:
    """Id of a token in `folder/tokenizer.json`; CheckpointError when it is not there."""
    content = read_json(folder / "tokenizer.json")
    for item in content.get("added_tokens") or ():
        if item.get("content") == token:
            return int(item["id"])
    vocabulary = (content.get("model") or {}).get("vocab") or {}
    if isinstance(vocabulary, dict) and isinstance(token, str) and token in vocabulary:
        return int(vocabulary[token])
    raise CheckpointError(
        f"{folder / 'tokenizer.json'}: {role} {token!r} is not in the vocabulary; use the policy's own tokenizer"
    )


def _content(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token
