"""JSON files of a checkpoint, read so that a wrong type is one line naming file and field."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from vla_edge.errors import CheckpointError, ConfigError

T = TypeVar("T")


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in `file`; CheckpointError when it is missing, damaged or not an object."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{file}: missing; give the folder that save_pretrained wrote") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: not valid JSON ({error}); copy the checkpoint again") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: holds a {type(content).__name__}, must be an object; copy the checkpoint again")
    return content


def take(content: Mapping[str, Any], name: str, default: T, where: object) -> T:
    """Field `name` of `content`, of the type `default` has; `default` where it is missing or null. ConfigError
    otherwise."""
    value = content.get(name)
    if value is None:
        return default
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)  # type: ignore[return-value]  # a float is what T is here
    if not isinstance(value, type(default)) or isinstance(value, bool) != isinstance(default, bool):
        raise ConfigError(f"{where}: {name} is {value!r}, must be of type {type(default).__name__}")
    return value


def take_positive(content: Mapping[str, Any], name: str, default: int, where: object) -> int:
    """A whole number of at least 1."""
    value = take(content, name, default, where)
    if value < 1:
        raise ConfigError(f"{where}: {name} is {value}, must be at least 1")
    return value
