# SPDX-License-Identifier: Apache-2.0
"""The random states of Python, numpy and torch, saved under LeRobot's names (`rng_state.safetensors`)."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vla_edge.errors import TrainingError
from vla_edge.policies.tensor_file import save_tensors


def rng_file(folder: Path, rank: int) -> Path:
    """One file per process; the first has LeRobot's name."""
    return folder / ("rng_state.safetensors" if rank == 0 else f"rng_state_{rank}.safetensors")


def save_rng(file: Path) -> None:
    """Write the states of this process."""
    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # type: ignore[misc]
    tensors: dict[str, Tensor] = {
        "py_rng_version": torch.tensor([version]),
        "py_rng_state": torch.tensor(words, dtype=torch.int64),
        "np_rng_state_values": torch.tensor(np.asarray(keys, np.int64)),
        "np_rng_state_index": torch.tensor([position]),
        "np_rng_has_gauss": torch.tensor([has_gauss]),
        "np_rng_cached_gaussian": torch.tensor([cached], dtype=torch.float32),
        "torch_rng_state": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        tensors["torch_cuda_rng_state"] = torch.cuda.get_rng_state()
    save_tensors(tensors, file)


def load_rng(file: Path) -> None:
    """Set the states of this process to what `save_rng` wrote."""
    try:
        tensors = load_file(file)
        random.setstate((int(tensors["py_rng_version"]), tuple(tensors["py_rng_state"].tolist()), None))
        keys, position = tensors["np_rng_state_values"].numpy().astype(np.uint32), int(tensors["np_rng_state_index"])
        cached = int(tensors["np_rng_has_gauss"]), float(tensors["np_rng_cached_gaussian"])
        np.random.set_state(("MT19937", keys, position, *cached))
        torch.set_rng_state(tensors["torch_rng_state"])
        if torch.cuda.is_available() and "torch_cuda_rng_state" in tensors:
            torch.cuda.set_rng_state(tensors["torch_cuda_rng_state"])
    except (FileNotFoundError, SafetensorError, KeyError, ValueError) as error:
        raise TrainingError(
            f"{file}: random states cannot be restored ({error}); with another number of processes a run cannot be "
            "resumed"
        ) from None


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch of this process."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
