# SPDX-License-Identifier: Apache-2.0
"""TensorBoard and Weights & Biases, each only when asked for."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vla_edge.errors import ConfigError
from vla_edge.fields import to_json
from vla_edge.files import write_json
from vla_edge.installation import install_command
from vla_edge.training.run_config import TrainConfig

Track = Callable[[Mapping[str, Any]], None]


def check_trackers(config: TrainConfig) -> None:
    """ConfigError when a package that `config` asks for is missing."""
    for name in config.trackers:
        if find_spec(name) is None:
            raise ConfigError(f"tracker {name}: the package is missing; install it with {install_command('track')}")


@contextmanager
def open_trackers(config: TrainConfig, run: Path, is_main: bool) -> Iterator[Track]:
    """A function that sends one metrics row to every tracker of `config`."""
    with ExitStack() as stack:
        sinks = [_OPENERS[name](config, run, stack) for name in config.trackers if is_main]

        def track(row: Mapping[str, Any]) -> None:
            values = {
                name: float(value) for name, value in row.items() if isinstance(value, (int, float)) and name != "step"
            }
            for sink in sinks:
                sink(int(row["step"]), values)

        yield track


def _tensorboard(config: TrainConfig, run: Path, stack: ExitStack) -> Callable[[int, Mapping[str, float]], None]:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(run / "tensorboard"))
    stack.callback(writer.close)

    def send(step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return send


def _wandb(config: TrainConfig, run: Path, stack: ExitStack) -> Callable[[int, Mapping[str, float]], None]:
    import wandb

    where, file = config.wandb, run / "wandb.json"
    known = json.loads(file.read_text())["id"] if file.is_file() else uuid.uuid4().hex[:12]
    write_json(file, {"id": known})
    session = wandb.init(
        id=known,
        resume="allow",
        project=where.project,
        entity=where.entity or None,
        name=where.name or run.name,
        dir=str(run),
        config=to_json(config),
    )
    stack.callback(session.finish)
    return lambda step, values: session.log(dict(values), step=step)


_OPENERS = {"tensorboard": _tensorboard, "wandb": _wandb}
