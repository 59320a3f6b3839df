# SPDX-License-Identifier: Apache-2.0
"""Reading and writing model.safetensors, strictly.

Names are LeRobot's. Types are taken from the file; computing is float32. A
prefix that compiling, several processes or adapters left is understood,
tensors that were tied when the model was saved get back both names, statistics
of older checkpoints are handed to the processors, keys of forks that we have
no use for are reported; anything else that is missing, extra or of another
shape is a CheckpointError that names file and tensor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from vla_edge.bundle import file_sha256
from vla_edge.errors import CheckpointError
from vla_edge.policies.checkpoint_folder import read_json
from vla_edge.policies.lora import ADAPTER_CONFIG, ADAPTER_FILE, base_folder, merged
from vla_edge.policies.tensor_file import save_tensors

MODEL_FILE = "model.safetensors"

_PREFIXES = ("_orig_mod.", "module.", "base_model.model.")
"""What compiling, training on several processes and adapters put in front of every name."""
_COMPILED = "model._orig_mod."
_STATISTICS = ("normalize_inputs.", "normalize_targets.", "unnormalize_outputs.")
_FORK_ONLY = ("model.action_context_encoder.",)


@dataclass(frozen=True)
class Weights:
    """What model.safetensors holds.

    tensors: the policy's own, under LeRobot's names, in the file's types. statistics: older checkpoints' normalisation
    buffers. ignored: keys without use. digest: sha256 of the file's bytes, hex. base: the policy that the adapter in
    the file was merged into.
    """

    file: Path
    tensors: dict[str, Tensor]
    statistics: dict[str, NDArray[np.float32]]
    ignored: tuple[str, ...]
    digest: str
    base: Path | None = None


def read_weights(folder: Path, base: Path | None = None) -> Weights:
    """Read `folder/model.safetensors`; of a LoRA folder, its base policy (`base`, None where the adapter says) with the
    adapter merged. CheckpointError: missing, truncated or damaged file, or a type that is no float."""
    if not (folder / MODEL_FILE).is_file() and (folder / ADAPTER_CONFIG).is_file():
        return _merged_weights(folder, base_folder(folder, base))
    if base is not None:
        raise CheckpointError(f"{folder}: holds no LoRA adapter ({ADAPTER_CONFIG}); leave --base out")
    file = folder / MODEL_FILE
    if not file.is_file():
        sharded = (folder / f"{MODEL_FILE}.index.json").is_file()
        advice = "the weights are in shards, save them as one file"
        raise CheckpointError(f"{file}: missing; {advice if sharded else 'give the folder that save_pretrained wrote'}")
    found = _tensors(file)
    for name, tensor in found.items():
        if not tensor.is_floating_point():
            raise CheckpointError(
                f"{file}: tensor {name} has type {tensor.dtype}, must be a float; save the policy unquantised"
            )
    statistics = {name: tensor.float().numpy() for name, tensor in found.items() if name.startswith(_STATISTICS)}
    ignored = tuple(sorted(name for name in found if name.startswith(_FORK_ONLY)))
    tensors = {name: tensor for name, tensor in found.items() if name not in statistics and name not in ignored}
    return Weights(file, tensors, statistics, ignored, file_sha256(file))


def _merged_weights(folder: Path, base: Path) -> Weights:
    file, weights = folder / ADAPTER_FILE, read_weights(base)
    tensors = merged(weights.tensors, _tensors(file), read_json(folder / ADAPTER_CONFIG), file)
    digest = hashlib.sha256(f"{weights.digest} {file_sha256(file)}".encode()).hexdigest()
    return replace(weights, file=file, tensors=tensors, digest=digest, base=base)


def _tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a file by their plain names. safetensors' `save_model` writes tied tensors once and the other
    names into the header, as {left out: kept}."""
    found: dict[str, Tensor] = {}
    try:
        with safe_open(file, framework="pt") as content:
            for name in content.keys():  # noqa: SIM118 - not a dict
                found[_plain(name)] = content.get_tensor(name)
            tied = {_plain(name): _plain(kept) for name, kept in (content.metadata() or {}).items()}
    except SafetensorError as error:
        raise CheckpointError(f"{file}: truncated or damaged ({error}); copy the checkpoint again") from None
    except FileNotFoundError:
        raise CheckpointError(f"{file}: missing; copy the whole folder again") from None
    return found | {name: found[kept] for name, kept in tied.items() if name not in found and kept in found}


def _plain(name: str) -> str:
    """The key without what compiling, several processes or adapters add."""
    while prefix := next((prefix for prefix in _PREFIXES if name.startswith(prefix)), None):
        name = name.removeprefix(prefix)
    return name.replace(_COMPILED, "model.", 1) if name.startswith(_COMPILED) else name


def load_weights(policy: Any, weights: Weights) -> None:
    """Give `policy` (its parameters on the meta device or real) the tensors, as float32, their types and the file's
    digest. Strict, see the module's text."""
    expected = policy.state_dict()
    missing = sorted(set(expected) - set(weights.tensors))
    if missing:
        raise CheckpointError(
            f"{weights.file}: tensor {missing[0]} is missing ({len(missing)} of {len(expected)}); the file does not "
            "fit config.json"
        )
    extra = sorted(set(weights.tensors) - set(expected))
    if extra:
        raise CheckpointError(
            f"{weights.file}: tensor {extra[0]} is not part of this policy ({len(extra)} such); the file does not "
            "fit config.json"
        )
    for name, tensor in expected.items():
        if weights.tensors[name].shape != tensor.shape:
            raise CheckpointError(
                f"{weights.file}: tensor {name} has shape {list(weights.tensors[name].shape)}, config.json makes it "
                f"{list(tensor.shape)}"
            )
    # A copy even where the type is float32 already: the tensors read are views of the mapped file, which may change
    # under us.
    policy.load_state_dict(
        {name: tensor.to(torch.float32, copy=True) for name, tensor in weights.tensors.items()}, assign=True
    )
    policy.stored_types = {name: tensor.dtype for name, tensor in weights.tensors.items()}
    policy.digest = weights.digest


def plain_weights(policy: nn.Module) -> dict[str, Tensor]:
    """The policy's state dict with adapters merged into the layers they adapt, under the checkpoint's own keys."""
    merged: dict[str, Tensor] = {}
    adapted = {name: module for name, module in policy.named_modules() if hasattr(module, "get_delta_weight")}
    for name, value in policy.state_dict().items():
        if ".lora_" in name:
            continue
        if ".base_layer." in name:
            owner = name.split(".base_layer.")[0]
            if name.endswith(".weight"):
                value = value + adapted[owner].get_delta_weight("default").to(value.dtype)
            name = name.replace(".base_layer.", ".")
        merged[name] = value.detach()
    return merged


def write_weights(module: nn.Module, file: Path, types: Mapping[str, torch.dtype]) -> None:
    """Write the weights of `module` to `file`, adapters merged, each tensor in its type of `types` where that holds its
    values exactly, else in float32: what training moved is not rounded."""
    tensors = {}
    for name, tensor in plain_weights(module).items():
        exact = tensor.cpu().contiguous()
        stored = exact.to(types.get(name, torch.float32))
        tensors[name] = stored if torch.equal(stored.to(exact.dtype), exact) else exact
    save_tensors(tensors, file, metadata={"format": "pt"})
