# SPDX-License-Identifier: Apache-2.0
"""`vla-train stages` and `vla-train anchors`: arguments and calls."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from vla_edge.camera_names import camera_pairs
from vla_edge.command_line import answer, count, folder_to_write, fraction, whole
from vla_edge.errors import ConfigError
from vla_edge.hub import local_folder
from vla_edge.lerobot_data.editing.episode_edits import parse_episodes
from vla_edge.lerobot_data.tolerance import add_tolerance
from vla_edge.policies.smolvla.policy import SmolVLAPolicy
from vla_edge.training.craft.anchor_features import GROUPS, LAYERS
from vla_edge.training.craft.anchors import AnchorPlan, build_anchors
from vla_edge.training.loop import make_accelerator
from vla_edge.training.options import TRACKERS, add_set, folder, pair, print_notes, reporter, tasks_of
from vla_edge.training.processes import is_first, join
from vla_edge.training.run_config import CHOICES, TaskData, TrainConfig, with_settings
from vla_edge.training.sequential.phases import (
    KUAVO,
    describe,
    missing_datasets,
    read_stages,
    stage_number,
    with_datasets,
    with_plan_settings,
)
from vla_edge.training.sequential.task_sequence import StageRun, check_settings, stage_notes, train_stages


def add_stages(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", help=f"stage file (YAML), or {KUAVO!r} for the shipped four Kuavo stages")
    parser.add_argument("--checkpoint", metavar="DIR", help="LeRobot checkpoint to start from")
    parser.add_argument(
        "--out", type=folder, metavar="DIR", help="folder of the sequence; an existing one is continued"
    )
    parser.add_argument(
        "--dataset", action="append", default=[], metavar="TASK=PATH", help="the dataset folder of a task"
    )
    parser.add_argument(
        "--camera",
        action="append",
        default=[],
        metavar="NAME=DATASET_NAME",
        help="a camera whose name differs in the datasets",
    )
    parser.add_argument(
        "--anchors", type=whole, default=0, help="CRaFT from stage 2 on with this many anchors of the earlier tasks"
    )
    parser.add_argument(
        "--anchor-layers",
        type=int,
        nargs="+",
        default=list(LAYERS),
        metavar="LAYER",
        help="expert layers the anchors hold, counted from the end",
    )
    parser.add_argument("--precision", choices=CHOICES["precision"], default="float32", help="number format")
    parser.add_argument("--device", choices=CHOICES["device"], default="auto", help="auto: a GPU where there is one")
    parser.add_argument("--seed", type=whole, default=1000, help="seed of everything random")
    parser.add_argument(
        "--workers", type=whole, help="processes that load data, 0: none; not given: up to 4 where it pays"
    )
    parser.add_argument("--save-every", type=count, default=1000, help="steps between checkpoints")
    parser.add_argument("--keep", type=whole, default=2, help="checkpoints to keep per stage, 0 all")
    parser.add_argument(
        "--stage", default="", metavar="NAME", help="train this stage alone, from the one before if done"
    )
    parser.add_argument("--held-out", type=fraction, help="share of episodes held out (default: as the file says)")
    parser.add_argument("--track", action="append", default=[], choices=TRACKERS, help="write metrics there too")
    add_set(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the plan and what is missing, train nothing")


def run_stages(arguments: argparse.Namespace) -> int:
    plan = with_datasets(
        read_stages(arguments.file),
        {
            name: str(local_folder(path, "dataset").resolve())
            for name, path in (pair(text, "--dataset") for text in arguments.dataset)
        },
    )
    held_out = [] if arguments.held_out is None else [f"shared.held_out_fraction={arguments.held_out}"]
    plan, settings = with_plan_settings(plan, [*arguments.set, *held_out])
    if arguments.stage:
        stage_number(plan, arguments.stage)
    missing = missing_datasets(plan)
    base = TrainConfig(
        arguments.checkpoint or "",
        arguments.out or "",
        (),
        device=arguments.device,
        precision=arguments.precision,
        seed=arguments.seed,
        workers=arguments.workers,
        save_every=arguments.save_every,
        keep=arguments.keep,
        rename=camera_pairs(arguments.camera),
        trackers=tuple(arguments.track),
    )
    base = with_settings(base, settings)
    check_settings(base)
    if arguments.dry_run:
        print(describe(plan))
        if settings:
            print(f"  every stage: {' '.join(settings)}")
        for task in missing:
            print(f"missing dataset: {task}")
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


def add_anchors(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint", required=True, type=Path, help="the teacher: the checkpoint fine-tuning will start from"
    )
    parser.add_argument(
        "--dataset", action="append", required=True, metavar="PATH", help="data of what must not be forgotten"
    )
    parser.add_argument(
        "--episodes", type=parse_episodes, default=(), metavar="LIST", help="episodes to use (one dataset only)"
    )
    add_tolerance(parser)
    parser.add_argument("--out", required=True, type=folder_to_write, metavar="DIR", help="new folder of the cache")
    parser.add_argument("--count", type=count, default=256, help="number of anchors")
    parser.add_argument(
        "--features",
        nargs="+",
        default=["hidden", "velocity"],
        choices=sorted(GROUPS),
        help="what is kept; vlm with LoRA or a trained VLM",
    )
    parser.add_argument(
        "--layers",
        type=int,
        nargs="+",
        default=list(LAYERS),
        metavar="LAYER",
        help="expert layers of the group hidden, counted from the end",
    )
    parser.add_argument("--seed", type=whole, default=0, help="seed of which frames are taken")
    parser.add_argument("--device", choices=CHOICES["device"], default="auto", help="auto: a GPU where there is one")


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
