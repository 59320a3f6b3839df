# SPDX-License-Identifier: Apache-2.0
"""Policy families: a family is a folder here with `policy.py`, which holds its `Policy` class as `FAMILY_POLICY`.

Nothing lists the families: config.json's `type` names the folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from vla_edge.errors import CheckpointError
from vla_edge.fields import take
from vla_edge.policies.checkpoint_folder import read_json, resolve_checkpoint
from vla_edge.policies.features import PolicyConfig
from vla_edge.policies.processing import ProcessorSettings


class FamilyConfig(PolicyConfig, Protocol):
    """What a chunk's makers and users ask of a configuration besides its features."""

    @property
    def chunk_size(self) -> int: ...

    @property
    def n_action_steps(self) -> int: ...

    @property
    def source(self) -> Mapping[str, Any]:
        """config.json as it was read."""

    @property
    def max_action_dim(self) -> int:
        """Columns of a chunk before un-normalising, padding included."""


class Policy(Protocol):
    """A policy of any family, as an `nn.Module` that LeRobot's users know. trains_whole: all its weights train, none is
    new, frozen or adapted, and it is neither distilled nor corrected by another expert."""

    family: str
    trains_whole: bool
    config: Any
    settings: ProcessorSettings
    digest: str
    stored_types: dict[str, torch.dtype]

    @property
    def notes(self) -> tuple[str, ...]: ...

    def preprocess(self, observation: Mapping[str, Any]) -> dict[str, Any]: ...

    def postprocess(self, actions: Tensor, state: Tensor | None = None) -> Tensor: ...

    def write(self, folder: Path) -> None: ...

    def reset(self) -> None: ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def parameters(self) -> Iterator[torch.nn.Parameter]: ...


def families() -> tuple[str, ...]:
    """Their names, as config.json's `type` has them."""
    return tuple(sorted(file.parent.name for file in Path(__file__).parent.glob("*/policy.py")))


def family_of(folder: Path) -> str:
    """The family of the checkpoint in `folder`. CheckpointError names those that are known."""
    file = folder / "config.json"
    kind = take(read_json(file), "type", "", file)
    if kind not in families():
        raise CheckpointError(
            f"{file}: policy type is {kind!r}, known are {' and '.join(families())} (docs/from-lerobot.md says why); "
            "give a checkpoint of one of them"
        )
    return kind


def load_policy(folder: Path, vlm: Path | None = None, base: Path | None = None) -> Any:
    """The policy that `folder` leads to, of whatever family. Arguments and errors: the family's `from_pretrained`."""
    folder = resolve_checkpoint(folder)
    return policy_class(family_of(folder)).from_pretrained(folder, vlm, base)


def policy_class(family: str) -> Any:
    """The family's `Policy`."""
    return import_module(f"vla_edge.policies.{family}.policy").FAMILY_POLICY
