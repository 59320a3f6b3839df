# SPDX-License-Identifier: Apache-2.0
"""Inputs and outputs of a policy as config.json lists them, and what every family's configuration states about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from vla_edge.errors import ConfigError

STATE = "observation.state"
ACTION = "action"
KINDS = ("STATE", "VISUAL", "ENV", "ACTION", "REWARD", "LANGUAGE")
"""Types a feature has in LeRobot."""


@dataclass(frozen=True, slots=True)
class Feature:
    """One input or output of the policy: `kind` is one of LeRobot's feature types; a VISUAL shape is (C, H, W)."""

    name: str
    kind: str
    shape: tuple[int, ...]


class PolicyConfig(Protocol):
    """What the parts that families share ask of a family's configuration."""

    @property
    def input_features(self) -> tuple[Feature, ...]: ...

    @property
    def output_features(self) -> tuple[Feature, ...]: ...

    @property
    def normalization_mapping(self) -> Mapping[str, str]:
        """Mode by feature type, for checkpoints without processor files."""

    @property
    def cameras(self) -> tuple[Feature, ...]:
        """In slot order."""

    @property
    def state_dim(self) -> int: ...

    @property
    def action_dim(self) -> int: ...

    @property
    def picture_modes(self) -> tuple[str, ...]:
        """Normalisation modes of pictures that the family computes."""

    @property
    def tokenizer_step(self) -> Mapping[str, Any] | None:
        """Settings of the tokenizer step where a checkpoint has none; None for a family that reads no task."""


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
