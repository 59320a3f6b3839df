"""The live line of a run: loss, learning rate, seconds per step, time left."""

from __future__ import annotations

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
def live_line(first_step: int, steps: int, title: str) -> Iterator[Report]:
    """A progress bar on stderr that starts at `first_step`."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]} lr {task.fields[lr]} {task.fields[pace]} s/step"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=steps, completed=first_step, loss="–", lr="–", pace="–")

        def report(step: int, loss: float, lr: float, seconds_per_step: float) -> None:
            bar.update(task, completed=step, loss=f"{loss:.4f}", lr=f"{lr:.2e}", pace=f"{seconds_per_step:.2f}")

        yield report
