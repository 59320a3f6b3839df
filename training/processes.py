# SPDX-License-Identifier: Apache-2.0
"""This process of a run: its device, and its place among the others (`accelerate launch`): who writes, and where they
wait for each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedDataParallelKwargs

from vla_edge.errors import TrainingError


def join(device: str) -> None:
    """Settle this process's device and place among the others, before anything asks; `device` "cpu" keeps CUDA out."""
    PartialState(cpu=device == "cpu")


def is_first() -> bool:
    """Whether this is the process that writes and talks (the only one unless started by `accelerate launch`)."""
    return bool(PartialState().is_main_process)


@contextmanager
def first_alone() -> Iterator[bool]:
    """The first process runs the block while the others wait; they then run it too. Yields whether this is the
    first."""
    state = PartialState()
    with state.main_process_first():
        yield bool(state.is_main_process)


def make_accelerator(device: str, unread_weights: bool = False) -> Accelerator:
    """accelerate's view of this process: device and number of processes. unread_weights: some trained weights get
    no gradient (adapters in the second half of the VLM's last text layer). TrainingError when CUDA is asked for and
    missing."""
    if device == "cuda" and not torch.cuda.is_available():
        raise TrainingError(
            "device cuda: no CUDA device is visible to torch; use --device cpu or install a CUDA build of torch"
        )
    unused = DistributedDataParallelKwargs(find_unused_parameters=unread_weights)
    # Autocast is our own (`loop.Loop.autocast`): accelerate's precision cannot change within a process.
    accelerator = Accelerator(mixed_precision="no", cpu=device == "cpu", kwargs_handlers=[unused])
    if device not in ("auto", accelerator.device.type):
        raise TrainingError(
            f"device {device}: this process already works on {accelerator.device}; use one device per process"
        )
    return accelerator


def device_name(device: torch.device) -> str:
    """The GPU by its name, or the processor with the number of torch's threads."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"{device.type}, {torch.get_num_threads()} threads"
