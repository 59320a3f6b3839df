# SPDX-License-Identifier: Apache-2.0
"""Starting and resuming runs: what `vla-train fine-tune | scratch | smoke | resume` call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vla_edge.errors import ConfigError, TrainingError
from vla_edge.fields import to_json
from vla_edge.files import write_json
from vla_edge.hub import local_folder
from vla_edge.lerobot_data.reader import Dataset, open_dataset
from vla_edge.policies.checkpoint_folder import resolve_checkpoint
from vla_edge.policies.families import Beginning, family_of, new_policy, policy_class
from vla_edge.policies.features import ACTION, Feature
from vla_edge.policies.features import STATE as OBSERVED
from vla_edge.policies.smolvla.config import read_config as read_smolvla
from vla_edge.training.build import Fit, policy_for_training
from vla_edge.training.checkpoints import PRETRAINED, RUN_FILE, STATE, STEP_FILE, last_checkpoint, step_of
from vla_edge.training.craft.anchors import AnchorCache
from vla_edge.training.craft.retention import Retention
from vla_edge.training.loop import Outcome, train
from vla_edge.training.loop_inputs import Setup, assemble, policy_fields
from vla_edge.training.processes import is_first, join, make_accelerator
from vla_edge.training.progress import Report, silent
from vla_edge.training.run_config import TrainConfig, read_config
from vla_edge.training.run_files import has_ended, trained_by_other
from vla_edge.training.sequential.phases import hold_out
from vla_edge.training.statistics import chosen_statistics
from vla_edge.training.trackers import check_trackers

SMOKE_EPISODES = 10
"""A smoke run reads so many of every dataset."""


def fine_tune(config: TrainConfig, report: Report = silent) -> tuple[Setup, Outcome]:
    """Train from the LeRobot checkpoint `config.policy` into the new folder `config.output`."""
    setup = prepare(config)
    return setup, begin(setup, report)


def prepare(config: TrainConfig) -> Setup:
    """Everything of a fine-tuning run but the training: what is wrong with data, policy or flags shows here."""
    _check_place(config)
    check_start(config)
    return assemble(config)


def prepare_scratch(config: TrainConfig, fields: Mapping[str, Any], family: str) -> Setup:
    """The same for a new policy of `family` on the pretrained weights `config.policy` ("": none); `fields` change the
    family's default configuration."""
    _check_place(config)
    if config.lora.rank or config.craft.anchors or config.kind != "base":
        raise ConfigError("LoRA, CRaFT and delta training start from a trained policy; use fine-tune")
    datasets = [open_dataset(task.path) for task in config.data]
    if not datasets:
        raise ConfigError("no dataset given; use --dataset PATH")
    statistics = chosen_statistics(datasets, config.statistics if config.statistics != "checkpoint" else "union")
    chosen = {**policy_fields(config, family), **fields}
    chosen.pop("train_delta_expert", None)
    inputs, outputs = _feature_shapes(datasets[0])
    beginning = Beginning(inputs, outputs, statistics, chosen, config.policy, config.seed)
    return assemble(config, new_policy(family, beginning))


def _feature_shapes(dataset: Dataset) -> tuple[tuple[Feature, ...], tuple[Feature, ...]]:
    """Input and output features of a policy made for `dataset` with all its cameras."""
    features = dataset.features
    visual = tuple(Feature(key, "VISUAL", (3, *features[key].shape[:2])) for key in dataset.camera_keys)
    return (Feature(OBSERVED, "STATE", features[OBSERVED].shape), *visual), (
        Feature(ACTION, "ACTION", features[ACTION].shape),
    )


def begin(setup: Setup, report: Report = silent) -> Outcome:
    """Train a prepared run from its first step."""
    run = Path(setup.config.output)
    retention = _retention(setup, started=False)
    if is_first():
        run.mkdir(parents=True, exist_ok=True)
        write_json(run / RUN_FILE, to_json(setup.config))
    return train(setup, retention, None, report)


def first_episodes(config: TrainConfig, count: int) -> TrainConfig:
    """Only the first `count` (chosen) episodes of every dataset: enough to see that everything fits together."""
    tasks = [
        replace(task, episodes=(task.episodes or tuple(range(len(open_dataset(task.path).episodes))))[:count])
        for task in config.data
    ]
    return replace(config, data=tuple(tasks))


def with_held_out(config: TrainConfig, fraction: float) -> TrainConfig:
    """Hold out a seeded share of each dataset's (chosen) episodes; explicit lists stay as they are.

    ConfigError for a share outside [0, 1), and when validation is asked for and nothing can be held out.
    """
    if not 0 <= fraction < 1:
        raise ConfigError(f"held-out share {fraction}: give 0 to below 1, for example 0.1")
    tasks = []
    for task in config.data:
        chosen = task.episodes or tuple(range(len(open_dataset(task.path).episodes)))
        held = task.held_out or tuple(chosen[i] for i in hold_out(len(chosen), fraction, config.seed))
        tasks.append(replace(task, held_out=held))
    if config.validate_every and not any(task.held_out for task in tasks):
        raise ConfigError(
            "validation needs a dataset of two episodes or more, one of them held out; give more episodes or leave "
            "--validate-every out"
        )
    return replace(config, data=tuple(tasks))


def resume(run: Path, report: Report = silent, moved: Sequence[Path] = ()) -> tuple[Setup, Outcome]:
    """Continue `run` from its last whole checkpoint to its configured number of steps. moved: where its datasets lie
    now, all of them in their order; empty where they were."""
    checkpoint = last_checkpoint(run)
    config = replace(read_config(checkpoint / STATE / RUN_FILE), output=str(run))
    if moved and len(moved) != len(config.data):
        names = ", ".join(task.name for task in config.data)
        raise ConfigError(
            f"--dataset is given {len(moved)} times, the run has {len(config.data)}: {names}, in this order"
        )
    if moved:
        folders = [str(local_folder(path, "dataset").resolve()) for path in moved]
        data = tuple(replace(task, path=folder) for task, folder in zip(config.data, folders))
        config = replace(config, data=data)
    gone = [task.path for task in config.data if not Path(task.path).is_dir()]
    if gone:
        raise ConfigError(
            f"{gone[0]}: the run's data are not there any more; say where they lie now with --dataset PATH"
        )
    join(config.device)
    if step_of(checkpoint) >= config.steps and has_ended(run):
        raise TrainingError(
            f"{run}: done already ({config.steps} steps); start a new run from {checkpoint / PRETRAINED}"
        )
    if is_first() and (other := trained_by_other(run)):
        raise TrainingError(f"{run}: process {other} is training it now; wait for it, or stop it first")
    setup = assemble(config, resumed_policy(config, checkpoint))
    return setup, train(setup, _retention(setup, started=True), checkpoint, report)


def resumed_policy(config: TrainConfig, checkpoint: Path) -> Any:
    """The policy as it stood at `checkpoint`; with adapters the untouched base policy, whose adapters are restored
    later."""
    datasets = [open_dataset(task.path) for task in config.data]
    fields = policy_fields(config, family_of(checkpoint / PRETRAINED))
    saved = policy_for_training(checkpoint / PRETRAINED, Fit(datasets, None, {}, fields, config.seed))
    if not config.lora.rank:
        return saved
    base = policy_for_training(Path(config.policy), Fit(datasets, None, config.rename, fields, config.seed))
    base.settings, base.tokenizer = saved.settings, saved.tokenizer
    base.load_state_dict(
        {name: value for name, value in saved.state_dict().items() if not name.startswith("model.vlm_with_expert.")},
        strict=False,
    )
    return base


def run_exists(run: Path) -> bool:
    """Whether `run` holds a checkpoint to resume from."""
    return any((run / "checkpoints").glob(f"*/{STATE}/{STEP_FILE}"))


def _retention(setup: Setup, started: bool) -> Retention | None:
    craft = setup.config.craft
    if not craft.anchors:
        return None
    cache = AnchorCache(Path(craft.anchors))
    cache.fit(setup.policy, cache.meta.teacher if started else setup.policy.digest)
    return Retention(craft, cache, setup.config.steps, setup.config.seed)


def check_start(config: TrainConfig) -> None:
    """ConfigError: a distilled policy would lose what it was distilled to, or there is nothing to distill."""
    folder = resolve_checkpoint(Path(config.policy))
    if policy_class(family_of(folder)).trains_whole:
        return
    start = read_smolvla(folder)
    if start.distilled and config.kind != "delta":
        raise ConfigError(
            f"{config.policy}: distilled to {start.num_steps} flow steps, which more training would undo; train the "
            "policy it was made of, then distill again"
        )
    if config.kind == "distill" and not 0 < config.num_steps < start.num_steps:
        raise ConfigError(
            f"--flow-steps {config.num_steps}: the policy takes {start.num_steps}; distill to fewer, from 1 on"
        )


def _check_place(config: TrainConfig) -> None:
    """The device is there, the trackers can be loaded, and the output folder is new or empty."""
    make_accelerator(config.device)
    check_trackers(config)
    output = Path(config.output)
    if is_first() and output.exists() and any(output.iterdir()):
        way = ""
        if run_exists(output):
            way = f", or continue it with `vla-train resume {output}`"
        elif (output / RUN_FILE).is_file():
            way = ", or remove it: a run that holds no checkpoint"
        raise TrainingError(f"{output}: exists and is not empty; choose another --out{way}")
