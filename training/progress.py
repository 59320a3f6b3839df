# SPDX-License-Identifier: Apache-2.0
"""The live line of a run: loss, learning rate, seconds per step, time left."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Report(Protocol):
    """Called once per optimiser step."""

    def __call__(self, step: int, loss: float, lr: float, seconds_per_step: float) -> None: ...


def silent(step: int, loss: float, lr: float, seconds_per_step: float) -> None:
    """Report nothing (other processes than the first, tests)."""


@contextmanager
def live_line(first_step: int, steps: int, title: str, every: int = 10) -> Iterator[Report]:
    """A progress bar on stderr that starts at `first_step`; without a terminal a line every `every` steps."""
    console = Console(stderr=True)
    if not console.is_terminal:

        def line(step: int, loss: float, lr: float, seconds_per_step: float) -> None:
            if step % every == 0 or step in (1, steps):
                left = seconds_per_step * (steps - step) / 60
                text = f"{title}: step {step} of {steps}, loss {loss:.4f}, lr {lr:.2e}, {seconds_per_step:.2f} s/step"
                print(f"{text}, {left:.0f} min left", file=sys.stderr, flush=True)

        yield line
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]} lr {task.fields[lr]} {task.fields[pace]} s/step"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=steps, completed=first_step, loss="–", lr="–", pace="–")

        def report(step: int, loss: float, lr: float, seconds_per_step: float) -> None:
            bar.update(task, completed=step, loss=f"{loss:.4f}", lr=f"{lr:.2e}", pace=f"{seconds_per_step:.2f}")

        yield report
