"""TensorBoard and Weights & Biases, each only when asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from vla_edge.errors import ConfigError
from vla_edge.training.config import TrainConfig, to_json

Track = Callable[[Mapping[str, Any]], None]


@contextmanager
def open_trackers(config: TrainConfig, run: Path, is_main: bool) -> Iterator[Track]:
    """A function that sends one metrics row to every tracker of `config`; ConfigError when a package is missing."""
    with ExitStack() as stack:
        sinks = [_OPENERS[name](config, run, stack) for name in config.trackers if is_main]

        def track(row: Mapping[str, Any]) -> None:
            values = {name: float(value) for name, value in row.items() if isinstance(value, (int, float)) and name != "step"}
            for sink in sinks:
                sink(int(row["step"]), values)

        yield track


def _tensorboard(config: TrainConfig, run: Path, stack: ExitStack) -> Callable[[int, Mapping[str, float]], None]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError("tracker tensorboard: the package is missing; pip install tensorboard or leave the tracker out") from None
    writer = SummaryWriter(str(run / "tensorboard"))
    stack.callback(writer.close)

    def send(step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return send


def _wandb(config: TrainConfig, run: Path, stack: ExitStack) -> Callable[[int, Mapping[str, float]], None]:
    try:
        import wandb
    except ImportError:
        raise ConfigError("tracker wandb: the package is missing; pip install wandb or leave the tracker out") from None
    session = wandb.init(project="vla-edge", name=run.name, dir=str(run), config=to_json(config))
    stack.callback(session.finish)
    return lambda step, values: session.log(dict(values), step=step)


_OPENERS = {"tensorboard": _tensorboard, "wandb": _wandb}
