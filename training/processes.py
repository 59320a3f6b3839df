# SPDX-License-Identifier: Apache-2.0
"""Several processes of one run (`accelerate launch`): who writes, and where they wait for each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from accelerate import PartialState


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
