# SPDX-License-Identifier: Apache-2.0
"""Tasks learnt one after the other with replay (Kuavo): one training run per stage, the transfer matrix, forgetting.

RUN/plan.json            what the sequence is resumed under; held-out episodes, fixed before stage 1
RUN/1_NAME …             one ordinary run per stage; each starts from the best checkpoint of the one before
RUN/transfer.json, .md   R[stage, task] (validation loss) and forgetting
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vla_edge.errors import ConfigError, TrainingError
from vla_edge.files import write_json, write_text
from vla_edge.lerobot_data.reader import Dataset, open_dataset
from vla_edge.policies.checkpoint import read_weights
from vla_edge.policies.features import ACTION, STATE
from vla_edge.policies.smolvla.config import plan_layers
from vla_edge.policies.smolvla.policy import SmolVLAPolicy
from vla_edge.training.build import Fit, policy_for_training
from vla_edge.training.checkpoints import CHECKPOINTS, PRETRAINED
from vla_edge.training.craft.anchor_features import check_layers, feature_names
from vla_edge.training.craft.anchors import AnchorPlan, build_anchors
from vla_edge.training.loop_inputs import check_dimensions, check_finite, long_tasks, policy_fields
from vla_edge.training.objective import Objective
from vla_edge.training.processes import first_alone, is_first, join, make_accelerator
from vla_edge.training.progress import Report
from vla_edge.training.run_config import LAYERS, ScheduleConfig, TrainConfig, with_settings
from vla_edge.training.run_files import has_ended
from vla_edge.training.runs import begin, check_start, prepare, resume, run_exists
from vla_edge.training.sequential.phases import StagePlan, hold_out, settings_json, stage_number
from vla_edge.training.sequential.transfer import Transfer, transfer_from_rows
from vla_edge.training.statistics import chosen_statistics
from vla_edge.training.step_plan import planned_policy
from vla_edge.training.training_frames import Frames, FrameSettings
from vla_edge.training.validation import validation_losses

PLAN_FILE = "plan.json"
Reporter = Callable[[int, int, str, int], AbstractContextManager[Report]]


@dataclass(frozen=True)
class StageRun:
    """A sequence of stages to run: the plan, the first policy, the folder, and a base configuration whose data, lr,
    steps, mix and output each stage sets. `anchors` > 0 turns CRaFT on from stage 2 with that many anchors of the
    earlier tasks. `settings`: `--set` texts that every stage's configuration gets last. `only`: the one stage to train,
    "" for all."""

    plan: StagePlan
    base: TrainConfig
    anchors: int = 0
    settings: tuple[str, ...] = ()
    only: str = ""
    anchor_layers: tuple[int, ...] = LAYERS


def stage_notes(sequence: StageRun) -> list[str]:
    """What to know before the sequence starts: the policy's notes and instructions its tokenizer would cut."""
    policy = SmolVLAPolicy.from_pretrained(sequence.base.policy)
    tasks = sequence.plan.tasks
    return [
        *policy.notes,
        *long_tasks(policy, [task.name for task in tasks], [open_dataset(task.dataset) for task in tasks]),
    ]


def train_stages(sequence: StageRun, reporter: Reporter, tell: Callable[[Sequence[str]], object] = list) -> Transfer:
    """Run (or continue) all stages and write the transfer matrix. tell: gets each stage's notes before it starts.
    Errors as of `fine_tune`, and ConfigError when data and plan disagree."""
    join(sequence.base.device)
    run = Path(sequence.base.output)
    datasets = [open_dataset(task.dataset) for task in sequence.plan.tasks]
    check_plan(sequence, datasets)
    held_out = [
        hold_out(len(data.episodes), sequence.plan.shared.held_out_fraction, sequence.base.seed) for data in datasets
    ]
    check_anchors(sequence, held_out)
    rows: list[dict[str, float]] = []
    with first_alone():
        _write_plan(run, sequence, held_out)
        start = _fitted_start(sequence, datasets, run)
    for number, stage in enumerate(sequence.plan.stages):
        if sequence.only and stage.name != sequence.only:
            earlier = run / f"{number + 1}_{stage.name}"
            start = str(best_or_last(earlier) / PRETRAINED) if has_ended(earlier) else start
            rows.append({})
            if stage_number(sequence.plan, sequence.only) < number:
                break
            continue
        config = stage_config(sequence, number, held_out, start)
        folder = Path(config.output)
        with first_alone():
            done = run_exists(folder) and has_ended(folder)
            if not done and not run_exists(folder):
                shutil.rmtree(folder, ignore_errors=True)
        if not done:
            with first_alone():
                config = _with_anchors(sequence, config, number)
            with reporter(0, config.steps, stage.name, config.log_every) as report:
                _train_stage(config, report, stage.name, tell)
        start = str(best_or_last(folder) / PRETRAINED)
        rows.append(_transfer_row(sequence, start, held_out))
        transfer = transfer_from_rows(
            [s.name for s in sequence.plan.stages], [t.name for t in sequence.plan.tasks], rows
        )
        if is_first():
            write_json(run / "transfer.json", transfer.to_json())
            write_text(run / "transfer.md", transfer.markdown() + "\n")
    return transfer


def _train_stage(config: TrainConfig, report: Report, name: str, tell: Callable[[Sequence[str]], object]) -> None:
    """Resume the stage where it has a checkpoint; one that stopped before its first starts again."""
    folder = Path(config.output)
    if run_exists(folder):
        resume(folder, report)
        return
    setup = prepare(config)
    tell([f"{name}: {note}" for note in setup.notes])
    begin(setup, report)


def stage_config(sequence: StageRun, number: int, held_out: list[tuple[int, ...]], start: str) -> TrainConfig:
    """The configuration of one stage. Tasks with share 0 are validated but not trained on."""
    plan, stage = sequence.plan, sequence.plan.stages[number]
    tasks = tuple(task.data(held, share) for task, share, held in zip(plan.tasks, stage.mix, held_out))
    shared = plan.shared
    own = Frames(tasks[-1], FrameSettings((), 1, 0))
    batch = shared.batch_size * shared.accumulation
    steps = stage.steps(len(own), batch)
    every = max(1, round(shared.validate_every_epochs * stage.steps_per_epoch(len(own), batch)))
    config = replace(
        sequence.base,
        policy=start,
        output=str(Path(sequence.base.output) / f"{number + 1}_{stage.name}"),
        data=tasks,
        steps=steps,
        batch_size=shared.batch_size,
        accumulation=shared.accumulation,
        save_every=min(sequence.base.save_every, steps),
        validate_every=min(every, steps),
        statistics="checkpoint",
        seed=sequence.base.seed + number,
        optimizer=replace(shared.optimizer, lr=stage.lr),
        schedule=ScheduleConfig(stage.warmup_steps, stage.decay_steps, shared.decay_lr),
        freeze=shared.freeze,
        n_action_steps=plan.policy.n_action_steps,
        num_steps=plan.policy.num_steps,
    )
    return with_settings(config, sequence.settings)


def check_plan(sequence: StageRun, datasets: Sequence[Dataset]) -> None:
    """The data have the plan's dimensions, the policy takes them; ConfigError names the task or field."""
    check_dimensions(datasets)
    check_finite([Frames(task.data(), FrameSettings((), 1, 0)) for task in sequence.plan.tasks])
    for task, data in zip(sequence.plan.tasks, datasets):
        for feature, size in ((ACTION, task.action_dim), (STATE, task.state_dim)):
            shape = data.features[feature].shape
            if shape != (size,):
                raise ConfigError(
                    f"task {task.name}: {feature} of {data.root} has shape {list(shape)}, the stage file says {size}"
                )
    check_settings(sequence.base)
    check_start(sequence.base)
    policy = planned_policy(Path(sequence.base.policy)).config
    for name in ("chunk_size", "max_state_dim", "max_action_dim"):
        wanted = getattr(sequence.plan.policy, name)
        if wanted and wanted != getattr(policy, name):
            raise ConfigError(
                f"{sequence.base.policy}: {name} is {getattr(policy, name)}, the stage file demands {wanted}; choose "
                "another policy or change the file"
            )


def check_settings(base: TrainConfig) -> None:
    """ConfigError for a `--set` that stages cannot heed: they train the policy, and make anchors of their own."""
    if base.kind != "base":
        raise ConfigError(f"--set kind={base.kind}: stages train the policy itself; leave it out")
    if base.craft.anchors:
        raise ConfigError("--set craft.anchors: every stage makes its own; give their number with --anchors")


def check_anchors(sequence: StageRun, held_out: Sequence[tuple[int, ...]]) -> None:
    """ConfigError before the first stage for anchors that a later one could not make."""
    if not sequence.anchors:
        return
    planned = planned_policy(Path(sequence.base.policy))
    feature_names(("hidden",), sequence.anchor_layers)
    experts = [layer for layer in plan_layers(planned.config, planned.backbone.text).expert_of if layer is not None]
    check_layers(len(experts), sequence.anchor_layers)
    for stage in sequence.plan.stages[1:]:
        earlier = zip(sequence.plan.tasks[: len(stage.mix) - 1], held_out)
        frames = sum(len(Frames(task.data(held), FrameSettings((), 1, 0))) for task, held in earlier)
        if frames < sequence.anchors:
            raise ConfigError(
                f"--anchors {sequence.anchors}: the tasks before stage {stage.name} have {frames} frames; ask for fewer"
            )


def best_or_last(run: Path) -> Path:
    """The checkpoint a stage hands on: the best by validation, the last without validation."""
    for name in ("best", "last"):
        if (run / CHECKPOINTS / name).exists():
            return (run / CHECKPOINTS / name).resolve()
    raise TrainingError(f"{run}: no checkpoint; run the stage again")


def _fitted_start(sequence: StageRun, datasets: Sequence[Dataset], run: Path) -> str:
    """The first policy with the sequence's statistics (of all tasks together, or the first), fixed for every stage."""
    folder = run / "start"
    if not folder.is_dir():
        statistics = chosen_statistics(datasets, sequence.plan.shared.statistics)
        fit = Fit(
            datasets, statistics, sequence.base.rename, policy_fields(sequence.base, "smolvla"), sequence.base.seed
        )
        policy_for_training(Path(sequence.base.policy), fit).save_pretrained(folder)
    return str(folder)


def _with_anchors(sequence: StageRun, config: TrainConfig, number: int) -> TrainConfig:
    """From stage 2 on, anchors of the earlier tasks made by the policy the stage starts from."""
    if not sequence.anchors or number == 0:
        return config
    cache = Path(sequence.base.output) / f"anchors_{number + 1}"
    if not cache.is_dir():
        earlier = tuple(replace(task, weight=1.0) for task in config.data[:-1])
        device = make_accelerator(config.device).device
        build_anchors(
            SmolVLAPolicy.from_pretrained(config.policy),
            AnchorPlan(earlier, sequence.anchors, config.seed, layers=sequence.anchor_layers),
            cache,
            device,
        )
    return replace(config, craft=replace(config.craft, anchors=str(cache)))


def _transfer_row(sequence: StageRun, policy: str, held_out: list[tuple[int, ...]]) -> dict[str, float]:
    """The validation loss of every task under `policy`, later tasks included (their first entries are transfer)."""
    model = SmolVLAPolicy.from_pretrained(policy)
    device = make_accelerator(sequence.base.device).device
    settings = FrameSettings(tuple(camera.source for camera in model.settings.cameras), model.config.chunk_size, 0)
    tasks = [
        Frames(task.data(held), settings, held_out=True) for task, held in zip(sequence.plan.tasks, held_out) if held
    ]
    frames, batch = sequence.base.validation_frames, sequence.plan.shared.batch_size
    return validation_losses(Objective(model.to(device), sequence.base.padded_dims), tasks, frames, batch, device)


def plan_content(sequence: StageRun, held_out: Sequence[tuple[int, ...]]) -> dict[str, Any]:
    """What `plan.json` holds: a sequence is continued only under the same content."""
    return {
        "plan": settings_json(sequence.plan),
        "held_out": [list(held) for held in held_out],
        "anchors": sequence.anchors,
        "anchor_layers": list(sequence.anchor_layers),
        "settings": list(sequence.settings),
        "seed": sequence.base.seed,
        "precision": sequence.base.precision,
        "rename": dict(sequence.base.rename),
        "policy": read_weights(Path(sequence.base.policy)).digest,
    }


def _write_plan(run: Path, sequence: StageRun, held_out: Sequence[tuple[int, ...]]) -> None:
    """Write the plan, or check that a started sequence is continued under the same one."""
    content, file = plan_content(sequence, held_out), run / PLAN_FILE
    if file.is_file():
        if json.loads(file.read_text()) != content:
            raise TrainingError(
                f"{run}: started with another policy, stage file, seed, precision or data; give a new --out"
            )
        return
    if run.exists() and any(run.iterdir()):
        raise TrainingError(f"{run}: exists and holds no {PLAN_FILE}; choose another --out")
    run.mkdir(parents=True, exist_ok=True)
    write_json(file, content)
