# SPDX-License-Identifier: Apache-2.0
"""`vla-train evaluate` and `vla-train compare`: chunk predictions on recorded episodes against what was recorded."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from vla_edge.command_line import answer
from vla_edge.errors import ConfigError, DatasetError
from vla_edge.files import write_text, written_beside
from vla_edge.lerobot_data.reader import Dataset, open_dataset
from vla_edge.lerobot_data.tolerance import TOLERANCE_S
from vla_edge.policies.features import ACTION
from vla_edge.training.checkpoints import RUN_FILE
from vla_edge.training.evaluation.compare_report import Contender, RobotTrials, draw, markdown, read_trials
from vla_edge.training.evaluation.prediction_errors import HorizonError, baselines, chunk_errors
from vla_edge.training.evaluation.prediction_errors import markdown as error_table
from vla_edge.training.evaluation.predictors import Predictor, Query, open_predictor
from vla_edge.training.run_config import TaskData, read_config
from vla_edge.training.statistics import names_or_numbers
from vla_edge.training.training_frames import Frames, FrameSettings

BATCH = 8


@dataclass(frozen=True)
class Scope:
    """Which frames are evaluated: every `stride`-th of the episodes, from the second of each on (the first has no last
    action to hold). `draws`: noise draws per frame, all from `seed`.
    tolerance_s: of pictures' times."""

    dataset: str
    episodes: tuple[int, ...]
    stride: int = 5
    seed: int = 0
    draws: int = 1
    tolerance_s: float = TOLERANCE_S

    def data(self, name: str) -> TaskData:
        return TaskData(name, self.dataset, episodes=self.episodes, tolerance_s=self.tolerance_s)


@dataclass(frozen=True)
class Targets:
    """What was recorded at the evaluated frames: actions float32 [frames, chunk, joints], is_pad bool [frames, chunk],
    last actions float32 [frames, joints], mean action float32 [joints]."""

    indices: tuple[int, ...]
    actions: NDArray[np.float32]
    is_pad: NDArray[np.bool_]
    last: NDArray[np.float32]
    mean: NDArray[np.float32]
    joints: tuple[str, ...]


def frames_of(scope: Scope, data: Frames) -> tuple[int, ...]:
    """Dataset indices to evaluate; DatasetError when the episodes are too short."""
    chosen = set(data.episodes)
    numbers = [
        i for e in data.dataset.episodes if e.index in chosen for i in range(e.from_index + 1, e.to_index, scope.stride)
    ]
    if not numbers:
        raise DatasetError(
            f"{data.dataset.root}: no episode with two frames or more among {list(data.episodes)}; choose others"
        )
    return tuple(numbers)


def targets_of(dataset: Dataset, indices: Sequence[int], chunk: int) -> Targets:
    """The recorded chunks at `indices`, and what the baselines need."""
    pairs = [dataset.chunk(index, chunk) for index in indices]
    column = dataset.column(ACTION)
    mean = np.asarray(dataset.stats[ACTION]["mean"], np.float32)
    last = column[np.asarray(indices) - 1].astype(np.float32)
    actions = np.stack([actions for actions, _ in pairs]).astype(np.float32)
    return Targets(tuple(indices), actions, np.stack([pad for _, pad in pairs]), last, mean, names_or_numbers(dataset))


def queries_of(
    data: Frames, predictor: Predictor, scope: Scope, indices: Sequence[int], draw_number: int
) -> list[Query]:
    """Observations at `indices` with noise that depends on (seed, draw, frame) alone."""
    places = {int(index): number for number, index in enumerate(data.indices)}
    return [
        Query(
            index,
            data.sample(places[index], 0),
            np.random.default_rng((scope.seed, draw_number, index)).standard_normal(predictor.noise, np.float32),
        )
        for index in indices
    ]


def predictions_of(predictor: Predictor, scope: Scope) -> tuple[NDArray[np.float32], Targets]:
    """Chunks float32 [draws, frames, chunk, joints] of the predictor, and the targets."""
    data = Frames(scope.data("evaluation"), FrameSettings(predictor.cameras, predictor.chunk, scope.seed))
    indices = frames_of(scope, data)
    targets = targets_of(data.dataset, indices, predictor.chunk)
    drawn = []
    for number in range(scope.draws):
        parts = [indices[start : start + BATCH] for start in range(0, len(indices), BATCH)]
        bar = track(parts, "predicting", console=Console(stderr=True), transient=True)
        chunks = [predictor.predict(queries_of(data, predictor, scope, part, number)) for part in bar]
        drawn.append(np.concatenate(chunks))
    return np.stack(drawn), targets


def errors_of(drawn: NDArray[np.float32], targets: Targets, chunk: int, executed: int) -> dict[str, HorizonError]:
    """Errors over all draws of the first `chunk` actions, of which `executed` are carried out."""
    recorded, is_pad = (
        np.concatenate([values[:, :chunk]] * len(drawn)) for values in (targets.actions, targets.is_pad)
    )
    return chunk_errors(np.concatenate(drawn)[:, :chunk], recorded, is_pad, executed)


def evaluate(
    predictor: Predictor, scope: Scope
) -> tuple[dict[str, dict[str, HorizonError]], NDArray[np.float32], Targets]:
    """Errors of the predictor and of both baselines, its predictions of the first draw, and the targets."""
    drawn, targets = predictions_of(predictor, scope)
    errors = {predictor.name: errors_of(drawn, targets, predictor.chunk, predictor.executed)}
    for name, predicted in baselines(targets.last, targets.mean, predictor.chunk).items():
        errors[name] = chunk_errors(predicted, targets.actions, targets.is_pad, predictor.executed)
    return errors, drawn[0], targets


def contender_of(
    predictor: Predictor, scope: Scope, timed: int, trials: RobotTrials | None = None
) -> tuple[Contender, NDArray[np.float32], Targets]:
    """One policy of a comparison, still without its errors, and `predictions_of` it; latency over `timed` single
    predictions."""
    drawn, targets = predictions_of(predictor, scope)
    data = Frames(scope.data("timing"), FrameSettings(predictor.cameras, predictor.chunk, scope.seed))
    spent = predictor.latency_ms(queries_of(data, predictor, scope, frames_of(scope, data)[:timed], 0))
    contender = Contender(
        name=predictor.name,
        kind=predictor.kind,
        latency_p50_ms=None if spent is None else float(np.percentile(spent, 50)),
        latency_p99_ms=None if spent is None else float(np.percentile(spent, 99)),
        parameters=predictor.parameters,
        flow_steps=predictor.flow_steps,
        chunk=predictor.chunk,
        executed=predictor.executed,
        trials=trials,
    )
    return contender, drawn, targets


def compared(found: Sequence[tuple[Contender, NDArray[np.float32], Targets]]) -> list[Contender]:
    """The contenders with their errors over the same actions: the chunk of the one that makes the fewest, of which as
    many count as executed as the one executes that executes the fewest. An action further away errs more."""
    chunk, executed = (min(getattr(contender, name) for contender, *_ in found) for name in ("chunk", "executed"))
    with_errors = []
    for contender, drawn, targets in found:
        errors = errors_of(drawn, targets, chunk, executed).items()
        mae = {horizon: float(error.mae.mean()) for horizon, error in errors}
        mse = {horizon: float(error.mse.mean()) for horizon, error in errors}
        per_joint = {horizon: dict(zip(targets.joints, map(float, error.mae))) for horizon, error in errors}
        with_errors.append(replace(contender, mae=mae, mse=mse, per_joint=per_joint))
    return with_errors


def scope_from_arguments(arguments: argparse.Namespace) -> Scope:
    dataset, episodes, tolerance_s = arguments.dataset, arguments.episodes, arguments.tolerance
    if arguments.run is not None:
        task = read_config(arguments.run / RUN_FILE).data[-1]
        dataset, episodes = dataset or task.path, episodes or task.held_out
        tolerance_s = max(tolerance_s, task.tolerance_s)
        if not episodes:
            raise ConfigError(f"{arguments.run}: the run held no episodes out; name some with --episodes")
    if not dataset:
        raise ConfigError("no dataset given; use --dataset PATH or --run RUN")
    with open_dataset(dataset) as found:
        dataset = str(found.root)
    return Scope(dataset, episodes, arguments.stride, arguments.seed, arguments.draws, tolerance_s)


def predictor_of_arguments(path: Path, arguments: argparse.Namespace) -> Predictor:
    return open_predictor(path, arguments.device, arguments.threads, arguments.flow_steps)


def check_steps_of_arguments(policies: Sequence[Path], arguments: argparse.Namespace) -> None:
    """ConfigError, before any work: a policy does not take `--flow-steps`, or none of them takes any."""
    steps = arguments.flow_steps
    if steps is not None and steps not in [predictor_of_arguments(path, arguments).flow_steps for path in policies]:
        raise ConfigError(
            f"--flow-steps {steps}: {', '.join(map(str, policies))}: predicted in one pass, or before; leave it out"
        )


def check_target(file: Path | None, suffix: str) -> None:
    """ConfigError, before any work, for a file that could not be written at the end."""
    if file is not None and (file.suffix != suffix or file.is_dir()):
        raise ConfigError(f"{file}: give a file name that ends in {suffix}")


def run_evaluate(arguments: argparse.Namespace) -> int:
    check_target(arguments.out, ".npz")
    scope = scope_from_arguments(arguments)
    check_steps_of_arguments([arguments.policy], arguments)
    predictor = predictor_of_arguments(arguments.policy, arguments)
    errors, predicted, targets = evaluate(predictor, scope)
    print(error_table(errors, targets.joints))
    if arguments.out:
        save_predictions(arguments.out, predictor, predicted, targets)
    answer({name: {h: e.to_json() for h, e in by.items()} for name, by in errors.items()})
    return 0


def save_predictions(file: Path, predictor: Predictor, predicted: NDArray[np.float32], targets: Targets) -> None:
    """Write what `SavedPredictor` reads."""
    content: dict[str, Any] = {
        "index": np.array(targets.indices),
        "action": predicted,
        "executed": np.array(predictor.executed),
        "name": np.array(predictor.name),
    }
    for name in ("flow_steps", "parameters"):
        if (value := getattr(predictor, name)) is not None:
            content[name] = np.array(value)
    with written_beside(file) as partial:
        np.savez(partial, **content)


def run_compare(arguments: argparse.Namespace) -> int:
    check_target(arguments.png, ".png")
    if arguments.png:
        import_module("matplotlib.figure")  # before minutes of predicting
    check_target(arguments.markdown, ".md")
    scope = scope_from_arguments(arguments)
    trials = _trials_of(arguments.trials, len(arguments.policies))
    check_steps_of_arguments(arguments.policies, arguments)
    contenders = compared(
        [
            contender_of(predictor_of_arguments(path, arguments), scope, arguments.timed, trials.get(number))
            for number, path in enumerate(arguments.policies, 1)
        ]
    )
    table = markdown(contenders)
    print(table)
    if arguments.png:
        draw(contenders, arguments.png)
    if arguments.markdown:
        write_text(arguments.markdown, table + "\n")
    answer({"policies": [asdict(contender) for contender in contenders]})
    return 0


def _trials_of(given: Sequence[str], policies: int) -> dict[int, RobotTrials]:
    """By the policy's place, from 1. ConfigError: no such place, or it stands there twice."""
    found: dict[int, RobotTrials] = {}
    for text in given:
        place, sign, file = text.partition("=")
        if not (sign and place.isdecimal() and 1 <= int(place) <= policies) or int(place) in found:
            raise ConfigError(f"--trials {text}: write NUMBER=JSON, NUMBER from 1 to {policies} and each once")
        found[int(place)] = read_trials(Path(file))
    return found
