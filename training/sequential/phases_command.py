# SPDX-License-Identifier: Apache-2.0
"""`vla-train stages` and `vla-train anchors`: what they call and print."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from vla_edge.camera_names import camera_pairs
from vla_edge.command_line import answer
from vla_edge.errors import ConfigError
from vla_edge.fields import to_json
from vla_edge.hub import local_folder
from vla_edge.policies.smolvla.policy import SmolVLAPolicy
from vla_edge.training.arguments import STAGES
from vla_edge.training.craft.anchors import AnchorPlan, build_anchors
from vla_edge.training.options import print_notes, reporter, tasks_of, with_flags_of_arguments
from vla_edge.training.processes import is_first, join, make_accelerator
from vla_edge.training.run_config import TaskData, TrainConfig, with_settings
from vla_edge.training.sequential.phases import (
    describe,
    missing_datasets,
    read_stages,
    stage_number,
    with_datasets,
    with_plan_settings,
)
from vla_edge.training.sequential.task_sequence import StageRun, check_settings, stage_notes, train_stages


def run_stages(arguments: argparse.Namespace) -> int:
    plan = with_datasets(read_stages(arguments.file), dict(map(_dataset, arguments.dataset)))
    held_out = [] if arguments.held_out is None else [f"shared.held_out_fraction={arguments.held_out}"]
    plan, settings = with_plan_settings(plan, [*arguments.set, *held_out])
    if arguments.stage:
        stage_number(plan, arguments.stage)
    missing = missing_datasets(plan)
    base = TrainConfig(
        arguments.checkpoint or "",
        arguments.out or "",
        (),
        rename=camera_pairs(arguments.camera),
        trackers=tuple(arguments.track),
        **STAGES,
    )
    base = with_settings(with_flags_of_arguments(base, arguments), settings)
    check_settings(base)
    if arguments.dry_run:
        print(describe(plan))
        if settings:
            print(f"  every stage: {' '.join(settings)}")
        for task in missing:
            print(f"missing dataset: {task}")
        answer({"plan": to_json(plan), "settings": list(settings), "missing": list(missing)})
        return 0
    if not arguments.checkpoint or not arguments.out:
        raise ConfigError("stages need --checkpoint DIR and --out DIR; or look at the plan with --dry-run")
    if missing:
        raise ConfigError(f"no dataset for task {missing[0]}; give it with --dataset TASK=PATH")
    sequence = StageRun(plan, base, arguments.anchors, settings, arguments.stage, tuple(arguments.anchor_layers))
    join(base.device)
    notes = stage_notes(sequence)
    print_notes(notes)

    def tell(found: Sequence[str]) -> None:
        print_notes([note for note in found if note.partition(": ")[2] not in notes])

    transfer = train_stages(sequence, reporter, tell)
    if is_first():
        print(transfer.markdown())
        answer(transfer.to_json())
    return 0


def _dataset(text: str) -> tuple[str, str]:
    """`TASK=PATH` → (task, its folder)."""
    task, _, path = text.partition("=")
    if not (task and path):
        raise ConfigError(f"--dataset {text!r}: write TASK=PATH")
    return task, str(local_folder(path, "dataset").resolve())


def run_anchors(arguments: argparse.Namespace) -> int:
    data: tuple[TaskData, ...] = tasks_of(arguments.dataset, arguments.episodes, arguments.tolerance)
    plan = AnchorPlan(data, arguments.count, arguments.seed, tuple(arguments.features), tuple(arguments.layers))
    device = make_accelerator(arguments.device).device
    meta = build_anchors(SmolVLAPolicy.from_pretrained(arguments.checkpoint), plan, arguments.out, device)
    print(
        f"{arguments.out}: {meta.count} anchors in {len(meta.shards)} shards, {', '.join(meta.features)}; teacher "
        f"{meta.teacher[:12]}"
    )
    answer({"count": meta.count, "shards": len(meta.shards), "teacher": meta.teacher, "cache_type": meta.cache_type})
    return 0
