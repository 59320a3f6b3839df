# SPDX-License-Identifier: Apache-2.0
"""Telling anchor caches apart, and refusing by name those that do not fit a SmolVLA."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from vla_edge.errors import TrainingError
from vla_edge.fields import read_object

METADATA = "metadata.json"


def cache_type(folder: Path) -> str:
    """`hidden_state` or `token_level`; TrainingError when `folder` is no anchor cache.

    A cache without the field is told by its content: token-level ones keep `labels`.
    """
    if not folder.is_dir():
        raise TrainingError(f"{folder}: no anchor cache there; build one with `vla-train anchors`")
    file = folder / METADATA
    if file.is_file():
        named = read_object(file, TrainingError, "build the anchors again").get("cache_type")
        if named in ("hidden_state", "token_level"):
            return str(named)
    return "token_level" if "labels" in _first_keys(folder) else "hidden_state"


def refuse_other_kinds(folder: Path) -> None:
    """TrainingError for a token-level cache, for old `.pt` shards, and for a folder without metadata."""
    kind = cache_type(folder)
    if kind == "token_level":
        raise TrainingError(
            f"{folder}: a token_level anchor cache (it holds labels); SmolVLA has no token loss, "
            "build a hidden_state cache with `vla-train anchors`"
        )
    old = sorted(folder.glob("*.pt"))
    if old:
        raise TrainingError(
            f"{old[0]}: an old {kind} shard without teacher and preprocessing digests; build the anchors again"
        )
    if not (folder / METADATA).is_file():
        raise TrainingError(f"{folder / METADATA}: missing; build the anchors again")


def _first_keys(folder: Path) -> set[str]:
    """Names in the first shard, of either format. Old `.pt` shards are read without running code."""
    shards = sorted([*folder.glob("shard_*.safetensors"), *folder.glob("*.pt")])
    if not shards:
        raise TrainingError(f"{folder}: holds no anchor shard; build one with `vla-train anchors`")
    first = shards[0]
    try:
        if first.suffix == ".safetensors":
            with safe_open(first, framework="pt") as content:
                return set(content.keys())
        loaded = torch.load(first, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise TrainingError(
            f"{first}: cannot be read as data only ({str(error).splitlines()[0]}); build the anchors again"
        ) from None
    if isinstance(loaded, list) and loaded:
        loaded = loaded[0]
    return set(loaded) if isinstance(loaded, dict) else set()
