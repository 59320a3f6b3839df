# SPDX-License-Identifier: Apache-2.0
"""Inputs and outputs of a policy as config.json lists them, and what every family's configuration states about them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from vla_edge.errors import CheckpointError, ConfigError
from vla_edge.fields import take_field

STATE = "observation.state"
ACTION = "action"
TABLES = ("input_features", "output_features")
KINDS = ("STATE", "VISUAL", "ENV", "ACTION", "REWARD", "LANGUAGE")
"""Types a feature has in LeRobot."""
MOST_SIDE = 16384


@dataclass(frozen=True, slots=True)
class Feature:
    """One input or output of the policy: `kind` is one of LeRobot's feature types; a VISUAL shape is (C, H, W)."""

    name: str
    kind: str
    shape: tuple[int, ...]


class PolicyConfig(ABC):
    """What every family's configuration states. normalization_mapping: mode by feature type, for checkpoints without
    processor files."""

    __slots__ = ()

    input_features: tuple[Feature, ...]
    output_features: tuple[Feature, ...]
    normalization_mapping: Mapping[str, str]

    @property
    @abstractmethod
    def picture_modes(self) -> tuple[str, ...]:
        """Normalisation modes of pictures that the family computes."""

    @property
    @abstractmethod
    def tokenizer_step(self) -> Mapping[str, Any] | None:
        """Settings of the tokenizer step where a checkpoint has none; None for a family that reads no task."""

    @property
    def cameras(self) -> tuple[Feature, ...]:
        """In slot order."""
        return tuple(item for item in self.input_features if item.kind == "VISUAL")

    @property
    def state_dim(self) -> int:
        """Real dimensions of the state."""
        return next(item.shape[0] for item in self.input_features if item.name == STATE)

    @property
    def action_dim(self) -> int:
        """Real dimensions of the action."""
        return next(item.shape[0] for item in self.output_features if item.name == ACTION)

    def check_features(self) -> None:
        """ConfigError: no state, action or camera, or a size that no picture and no joint has."""
        for item in (*self.input_features, *self.output_features):
            if max(item.shape) > MOST_SIDE:
                raise ConfigError(f"feature {item.name} has shape {list(item.shape)}, sides may be {MOST_SIDE} at most")
        names = [item.name for item in self.input_features]
        if STATE not in names or not any(item.name == ACTION for item in self.output_features):
            raise ConfigError(
                f"input_features must hold {STATE} and output_features {ACTION}; found {', '.join(names) or 'nothing'}"
            )
        if not self.cameras:
            raise ConfigError("input_features holds no camera (type VISUAL); the policy needs at least one")
        for item in self.cameras:
            if len(item.shape) != 3 or item.shape[0] != 3:
                raise ConfigError(f"input_features.{item.name}.shape is {list(item.shape)}, must be [3, height, width]")


Config = TypeVar("Config", bound=PolicyConfig)


def config_from(
    kind: type[Config],
    policy: str,
    content: Mapping[str, Any],
    where: str,
    unused: Collection[str],
    ours: Collection[str],
) -> Config:
    """The configuration `kind` of a config.json's `content`; `where` is named in errors. unused: fields without
    arithmetic; ours: fields of `kind` that are no field of the file."""
    found, wanted = content.get("type"), policy.lower()
    if found != wanted:
        raise CheckpointError(
            f"{where}: policy type is {found!r}, supported is {wanted!r}; give a checkpoint of type {policy}"
        )
    values = read_tables(content, where)
    known = {item.name for item in fields(kind)} - {*ours}  # type: ignore[arg-type]
    values |= {name: take_field(kind, content, name, where) for name in content if name in known - {*TABLES}}
    notes = unread(content, {*known, *unused}, values["input_features"], policy)
    values |= {"source": dict(content), "notes": tuple(notes)}
    try:
        return kind(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def read_tables(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Both tables of features of a config.json's `content`. CheckpointError: one is not there. ConfigError: a feature
    that is none, or a policy that reads several observations."""
    for name in TABLES:
        if name not in content:
            raise CheckpointError(f"{where}: {name} is missing; save the policy again with LeRobot 0.2 or newer")
    if content.get("n_obs_steps", 1) != 1:
        raise ConfigError(
            f"{where}: n_obs_steps is {content['n_obs_steps']!r}, must be 1: the policy reads one observation"
        )
    return {name: read_features(content[name], f"{where}: {name}") for name in TABLES}


def tables_json(features: Iterable[Feature]) -> dict[str, Any]:
    """A table of features as config.json has it."""
    return {item.name: {"type": item.kind, "shape": list(item.shape)} for item in features}


def fields_json(config: PolicyConfig, ours: Collection[str]) -> dict[str, Any]:
    """The fields of a configuration as config.json has them; ours: those that are no field of the file."""
    content = {}
    for item in fields(config):  # type: ignore[arg-type]
        value = getattr(config, item.name)
        if item.name in TABLES:
            value = tables_json(value)
        if item.name not in ours:
            content[item.name] = list(value) if isinstance(value, tuple) else value
    return content


def unread(content: Mapping[str, Any], known: Collection[str], inputs: Iterable[Feature], policy: str) -> list[str]:
    """A note for each field of config.json that nobody knows, and each input that the `policy` does not read."""
    notes = [f"config.json: field {name} is not known here and was not used" for name in sorted({*content} - {*known})]
    extra = (item.name for item in inputs if item.kind != "VISUAL" and item.name != STATE)
    return [*notes, *(f"config.json: {policy} does not read the input {name}" for name in extra)]


def read_features(value: Any, where: str) -> tuple[Feature, ...]:
    """The features of one table of config.json; `where` is named in a ConfigError."""
    if not isinstance(value, dict):
        raise ConfigError(f"{where} is {type(value).__name__}, must be an object of features")
    features = []
    for name, item in value.items():
        if (
            not isinstance(item, dict)
            or not isinstance(item.get("shape"), list)
            or not isinstance(item.get("type"), str)
        ):
            raise ConfigError(f"{where}.{name} must have a type and a shape; save the policy again")
        if item["type"] not in KINDS:
            raise ConfigError(f"{where}.{name}.type is {item['type']!r}, must be one of {', '.join(KINDS)}")
        if not item["shape"] or any(not isinstance(size, int) or size < 1 for size in item["shape"]):
            raise ConfigError(f"{where}.{name}.shape is {item['shape']!r}, must be positive whole numbers")
        features.append(Feature(name, item["type"], _channels_first(item["type"], tuple(item["shape"]))))
    return tuple(features)


def _channels_first(kind: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """LeRobot leaves a picture's shape as (H, W, 3) where the dataset names its axes in another way than it
    expects."""
    if kind == "VISUAL" and len(shape) == 3 and shape[0] != 3 and shape[2] == 3:
        return (3, *shape[:2])
    return shape
