# SPDX-License-Identifier: Apache-2.0
"""Parsed flags of a training run made a `TrainConfig`, and what `fine-tune`, `scratch`, `smoke` and `resume` print."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from math import isfinite
from pathlib import Path
from typing import Any

from vla_edge.camera_names import camera_pairs
from vla_edge.command_line import answer
from vla_edge.errors import ConfigError
from vla_edge.fields import read_object
from vla_edge.hub import local_folder
from vla_edge.lerobot_data.tolerance import TOLERANCE_S
from vla_edge.training.arguments import FLAGS
from vla_edge.training.loop import Outcome
from vla_edge.training.processes import is_first, join
from vla_edge.training.progress import live_line, silent
from vla_edge.training.run_config import TaskData, TrainConfig, with_changes, with_settings, with_values
from vla_edge.training.runs import first_episodes, with_held_out

DELTA_HELD_OUT = 0.1
"""Share of episodes that a delta expert's error is measured on where no other is given."""


def config_from_arguments(
    arguments: argparse.Namespace, policy: str, defaults: Mapping[str, Any], kind: str = "base", episodes: int = 0
) -> TrainConfig:
    """The configuration of parsed flags on top of `defaults`. `episodes`: only the first so many of every dataset, 0
    all."""
    rename = camera_pairs(arguments.camera)
    out = arguments.out or time.strftime("outputs/train/%Y-%m-%d/%H-%M-%S")
    config = TrainConfig(
        policy,
        out,
        tasks_of(arguments.dataset, arguments.episodes, arguments.tolerance),
        kind,
        rename=rename,
        trackers=tuple(arguments.track),
        **defaults,
    )
    if arguments.run_file is not None:
        content = read_object(arguments.run_file, ConfigError, "write the run's fields as run.json has them")
        config = with_changes(config, content, arguments.run_file)
    config = with_settings(with_flags_of_arguments(config, arguments), arguments.set)
    if config.kind != kind:
        raise ConfigError(
            f"kind {config.kind} is given by `vla-train fine-tune --kind base|delta` and `vla-train distill`; leave it "
            "out of --set and --config"
        )
    held_out = arguments.held_out if arguments.held_out is not None else DELTA_HELD_OUT * (kind == "delta")
    if config.validate_every and not held_out:
        raise ConfigError("--validate-every needs episodes to validate on; give --held-out, for example 0.1")
    join(config.device)
    return with_held_out(first_episodes(config, episodes) if episodes else config, held_out)


def with_flags_of_arguments(config: TrainConfig, arguments: argparse.Namespace) -> TrainConfig:
    """`config` with what was given of `FLAGS`."""
    given = vars(arguments)
    table = {flag.replace("-", "_"): path for flags in FLAGS.values() for flag, (_, path, _) in flags.items()}
    return with_values(config, {path: given.get(flag) for flag, path in table.items()})


def tasks_of(
    datasets: Sequence[str], episodes: tuple[int, ...], tolerance_s: float = TOLERANCE_S
) -> tuple[TaskData, ...]:
    """The datasets of `PATH[:WEIGHT]` texts (folders or Hub ids); names are folder names, made unique."""
    tasks: list[TaskData] = []
    for text in datasets:
        path, _, weight = text.rpartition(":")
        if not (path and _is_number(weight)):
            path, weight = text, "1"
        name = Path(path).name or path
        taken = sum(task.name == name or task.name.startswith(f"{name}#") for task in tasks)
        folder = str(local_folder(path, "dataset").resolve())
        tasks.append(TaskData(f"{name}#{taken + 1}" if taken else name, folder, float(weight)))
    if episodes and len(tasks) > 1:
        raise ConfigError("--episodes with several datasets is ambiguous; give one dataset")
    return tuple(replace(task, episodes=episodes, tolerance_s=tolerance_s) for task in tasks)


def reporter(first_step: int, steps: int, title: str, every: int = 10) -> Any:
    """The live line of the first process, silence elsewhere; a context manager. After `join`."""
    return live_line(first_step, steps, title, every) if is_first() else nullcontext(silent)


def print_notes(notes: Sequence[str]) -> None:
    """What a person should know before the run starts."""
    for note in notes if is_first() else ():
        print(f"note: {note}", flush=True)


def print_outcome(outcome: Outcome) -> None:
    """The end of the run, for people and for `--json`."""
    if not is_first():
        return
    best = (
        f", best validation {outcome.best_loss:.5f} at step {outcome.best_step}"
        if outcome.best_loss is not None
        else ""
    )
    print(f"done: {outcome.steps} steps, loss {outcome.loss:.5f}{best}; checkpoint {outcome.checkpoint}")
    answer(asdict(outcome))


def _is_number(text: str) -> bool:
    try:
        return isfinite(float(text))
    except ValueError:
        return False
