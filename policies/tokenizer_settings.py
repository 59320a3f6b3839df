# SPDX-License-Identifier: Apache-2.0
"""How a task becomes token ids, as a checkpoint's files say it. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_edge.errors import CheckpointError, ConfigError
from vla_edge.fields import take, take_positive
from vla_edge.policies.checkpoint_folder import find_folder, given_folder, read_json


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


def read_tokenizer(
    folder: Path, values: Mapping[str, Any], append_newline: bool, given: Path | None
) -> TokenizerSettings:
    """The settings of a tokenizer step's `values` in the checkpoint `folder`. given: where the tokenizer lies, None to
    look where the checkpoint says. Errors: CheckpointError, ConfigError."""
    where = folder / "policy_preprocessor.json"
    padding = values.get("padding", "max_length")
    padding = "longest" if padding in (True, False, "do_not_pad") else padding
    side, length = values.get("padding_side", "right"), take_positive(values, "max_length", 512, where)
    for field, value, holds, limit in (
        ("padding", padding, padding in ("longest", "max_length"), "longest or max_length"),
        ("padding_side", side, side in ("left", "right"), "left or right"),
        ("truncation", values.get("truncation", True), values.get("truncation", True) is True, "true"),
        ("task_key", values.get("task_key", "task"), values.get("task_key", "task") == "task", "task"),
    ):
        if not holds:
            raise ConfigError(f"{where}: tokenizer_processor.{field} is {value!r}, must be {limit}")
    name = take(values, "tokenizer_name", "", where)
    files = ("tokenizer.json", "tokenizer_config.json")
    place = find_folder(name, folder, files) if given is None else given_folder(given, files)
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
        append_newline=append_newline,
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
