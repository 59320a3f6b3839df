# SPDX-License-Identifier: Apache-2.0
"""Policy families: a family is a folder here that says as `FAMILY_SCRATCH` how a new policy is trained, with
`policy.py`, which holds its `Policy` class as `FAMILY_POLICY`, and `new_policy.py`, which makes a new one. No torch.

Nothing lists the families: config.json's `type` names the folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from vla_edge.errors import CheckpointError
from vla_edge.fields import take
from vla_edge.policies.checkpoint_folder import read_json, resolve_checkpoint
from vla_edge.policies.features import Feature, tables_json
from vla_edge.policies.normalization import Statistics
from vla_edge.policies.processing import ProcessorSettings

if TYPE_CHECKING:
    import torch
    from torch import Tensor


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


@dataclass(frozen=True, slots=True)
class Beginning:
    """What a new policy is made from. fields: of config.json, where they differ from the family's defaults. backbone:
    pretrained weights, a path or a Hub id, "" for none. seed: of everything random."""

    inputs: tuple[Feature, ...]
    outputs: tuple[Feature, ...]
    statistics: Statistics
    fields: Mapping[str, Any]
    backbone: str
    seed: int

    @property
    def features(self) -> dict[str, Any]:
        """The features as config.json has them."""
        return {"input_features": tables_json(self.inputs), "output_features": tables_json(self.outputs)}


@dataclass(frozen=True, slots=True)
class Preset:
    """LeRobot's way to train a family: AdamW with a linear warm-up, then a cosine to `decay_lr` at `decay_steps`."""

    batch_size: int
    steps: int
    lr: float
    betas: tuple[float, float]
    weight_decay: float
    warmup_steps: int
    decay_steps: int
    decay_lr: float


@dataclass(frozen=True, slots=True)
class Scratch:
    """How a family begins. backbone: what its pretrained weights are, in words for a help text."""

    backbone: str
    preset: Preset


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


def scratch_of(family: str) -> Scratch:
    """How a new policy of the family is trained."""
    scratch: Scratch = import_module(f"vla_edge.policies.{family}").FAMILY_SCRATCH
    return scratch


def new_policy(family: str, beginning: Beginning) -> Any:
    """A new policy of the family. Errors: CheckpointError, ConfigError."""
    return import_module(f"vla_edge.policies.{family}.new_policy").from_scratch(beginning)
