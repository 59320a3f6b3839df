# SPDX-License-Identifier: Apache-2.0
"""`vla-doctor deploy BUNDLE`: checks before a bundle goes to a robot, each of them carried out. No torch.

Each passes, fails with the fix, or was not run with what it would need.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from vla_edge.bundle import TRAIN_DELTA, open_bundle
from vla_edge.command_line import answer, positive, threads
from vla_edge.engines.engine import EngineOptions, load_engine
from vla_edge.errors import CheckFailed, ObservationError
from vla_edge.lerobot_data.tolerance import TOLERANCE_S, add_tolerance
from vla_edge.robot.arm_description import DEFAULT_ARM, load_arm
from vla_edge.robot.camera_options import parse_cameras
from vla_edge.robot.joint_calibration import JointUnits
from vla_edge.robot.robot_file import add_arm, add_robot_file
from vla_edge.runtime.control.handover import Rhythm, handover_of, pace_of, rows_of
from vla_edge.runtime.control.identity import cameras_named
from vla_edge.runtime.control.inference_log import InferenceLog
from vla_edge.runtime.inference.prompt import PromptEncoder
from vla_edge.runtime.inference.session import PolicySession, SessionOptions
from vla_edge.runtime.inference.units import ACTION, joint_ranges, read_tables
from vla_edge.trials.deploy_arithmetic import check_pictures, check_round_trip, check_state
from vla_edge.trials.deployment import FAILED, NOT_RUN, PASSED, Deployment, Item, Scene, dataset_scenes, random_scenes
from vla_edge.trials.identity_check import robot_differences, shape_differences, task_differences
from vla_edge.trials.place_check import check_cameras, check_start_pose
from vla_edge.trials.safety_check import check_safety

RANGE_MARGIN = 0.1
"""Share of a joint's training range that a chunk may leave it by."""


def check_speed(deployment: Deployment) -> Item:
    """The executed part of a chunk must outlast two inferences, so that the arm moves on while the next is made."""
    times = [deployment.infer(scene).timings.total for scene in deployment.scenes]
    warm = times[1:] or times
    manifest = deployment.bundle.manifest
    policy, rate = manifest.policy, manifest.fps or deployment.hz
    actions = rows_of(policy, handover_of(None, None, manifest))
    p50, worst = float(np.percentile(warm, 50)), max(warm)
    pace = pace_of(p50 / 1e3, worst / 1e3, actions, 1 / rate)
    taken = f", in {policy.num_steps} flow step{'s' * (policy.num_steps > 1)}" if manifest.programme.step else ""
    found = (
        f"{pace.rhythm.value}: p50 {p50:.1f} ms, worst {worst:.1f} ms over {len(warm)}{taken}"
        f"{' (distilled)' if policy.distilled else ''}; {actions} actions at {rate:g} a second last "
        f"{pace.chunk_s * 1e3:.0f} ms"
    )
    if manifest.fps is None:
        found += " (the bundle does not say the data's rate: one action each control tick)"
    if pace.rhythm is Rhythm.OVERLAPPED:
        return Item("speed", PASSED, found)
    shortened = next((note for note in manifest.notes if "(--chunk-size)" in note), "")
    more = f"the bundle {shortened}: export with a larger one" if shortened else "execute more actions per chunk"
    return Item("speed", FAILED, found, f"{more}, use the INT8 bundle or a faster backend, or accept plan-then-move")


def check_output_range(deployment: Deployment) -> Item:
    """Every action lies within the training range, widened by a tenth."""
    if not deployment.recorded:
        return Item("output range", NOT_RUN, "needs recorded observations", "give --dataset with the robot's cameras")
    tables = read_tables(deployment.bundle)
    ranges = joint_ranges(tables, deployment.bundle.manifest.policy.action_dim)
    if ranges is None:
        return Item("output range", NOT_RUN, "the bundle has no action statistics", "export a checkpoint that has them")
    if f"{ACTION}.min" in tables and f"{ACTION}.max" in tables:
        low, high = tables[f"{ACTION}.min"], tables[f"{ACTION}.max"]
    else:
        half = (ranges / 2).astype(np.float32)
        low, high = tables[f"{ACTION}.mean"] - half, tables[f"{ACTION}.mean"] + half
    actions = np.concatenate([deployment.infer(scene).actions for scene in deployment.scenes])
    beyond = np.maximum(low - actions, actions - high).max(0) / np.where(np.isfinite(ranges), ranges, 1)
    worst = int(beyond.argmax())
    joint = deployment.bundle.manifest.joints[worst] if deployment.bundle.manifest.joints else str(worst)
    found = f"{len(actions)} actions, furthest {joint}: {max(float(beyond[worst]), 0):.1%} of its range outside"
    good = bool(np.isfinite(actions).all() and beyond[worst] <= RANGE_MARGIN)
    fix = "check that the dataset, its statistics and the joint units are those of training"
    return Item.judged("output range", good, found, fix)


def check_dataset(deployment: Deployment) -> Item:
    """The dataset is of the bundle's robot: joints, cameras, statistics; what `vla-runtime identity` compares."""
    found = deployment.differences
    if found is None:
        return Item("dataset", NOT_RUN, "needs a dataset of this robot", "give --dataset")
    if not found:
        return Item("dataset", PASSED, "joints, cameras and statistics are the bundle's")
    more = f" (and {len(found) - 1} more: vla-runtime identity)" if len(found) > 1 else ""
    return Item("dataset", FAILED, f"{found[0]}{more}", "give the dataset the policy was trained on")


def check_instruction(deployment: Deployment) -> Item:
    """The instruction, or every one of the dataset, fits the tokenizer's length whole."""
    if not deployment.bundle.manifest.reads_text:
        return Item("instruction", PASSED, "the policy reads none")
    if not deployment.tasks:
        return Item("instruction", NOT_RUN, "no instruction given", "give --task, or --dataset")
    cut = task_differences(deployment.bundle, deployment.tasks)
    if cut:
        return Item("instruction", FAILED, cut[0], "shorten the instruction and train with the short one")
    try:
        counts = [int(PromptEncoder(deployment.bundle).encode(task).mask.sum()) for task in deployment.tasks]
    except ObservationError as error:
        return Item("instruction", FAILED, str(error), "say what the arm shall do, in a sentence")
    limit = deployment.bundle.manifest.tokenizer.max_length
    return Item("instruction", PASSED, f"{max(counts)} of {limit} tokens, nothing cut")


def check_exceptions(deployment: Deployment) -> Item:
    """Every bad observation is refused with a typed error, and the next good one works."""
    good, survived = deployment.scenes[0], []
    first = next(iter(good.images))
    bad: dict[str, Scene] = {
        "no camera": Scene({}, good.state, good.task),
        "unknown camera": Scene(
            {**good.images, "observation.images.unknown": good.images[first]}, good.state, good.task
        ),
        "small picture": Scene({**good.images, first: good.images[first][:1]}, good.state, good.task),
        "float picture": Scene({**good.images, first: good.images[first].astype(np.float32)}, good.state, good.task),  # type: ignore[dict-item]
        "NaN state": Scene(good.images, np.full_like(good.state, np.nan), good.task),
        "short state": Scene(good.images, good.state[:-1], good.task),
    }
    for name, scene in bad.items():
        try:
            deployment.infer(scene)
        except ObservationError:
            continue
        survived.append(name)
    before, after = deployment.infer(good).actions, deployment.infer(good).actions
    if survived or not np.array_equal(before, after):
        found = f"accepted: {', '.join(survived) or 'nothing, but a good observation changed'}"
        return Item("exception handling", FAILED, found, "report this as a bug of vla-edge")
    return Item("exception handling", PASSED, f"{len(bad)} bad observations refused, the next good one unchanged")


def check_logging(deployment: Deployment) -> Item:
    """An inference is recorded and can be read back."""
    with tempfile.TemporaryDirectory() as folder:
        log = InferenceLog(Path(folder))
        log.inference(deployment.infer(deployment.scenes[0]), {"sequence": 1})
        log.close()
        rows = [json.loads(line) for line in (Path(folder) / "inference.jsonl").read_text().splitlines()]
    wanted = {"reason", "vision", "prefix", "ms", "steps"}
    complete = len(rows) == 1 and wanted <= rows[0].keys() and rows[0]["ms"]["total"] > 0
    return Item.judged(
        "logging",
        complete,
        f"one inference recorded with {', '.join(sorted(wanted))}",
        "check the disk the run folder lies on",
    )


def check_limits(deployment: Deployment) -> Item:
    """NaN, huge and wild chunks through schedule and guard never break a limit."""
    return check_safety(deployment.arm, deployment.bundle.manifest.policy.action_dim, deployment.hz)


def check_correction(deployment: Deployment) -> Item:
    """A delta expert is better than no correction, and was taught what the runtime asks of it."""
    manifest = deployment.bundle.manifest
    if not manifest.programme.correct:
        return Item("delta expert", PASSED, "the bundle has none")
    if why := manifest.why_not_delta:
        return Item("delta expert", FAILED, why, f"{TRAIN_DELTA}; until then run with --cache still")
    assert manifest.correction is not None
    return Item("delta expert", PASSED, f"{manifest.correction.relative_error:.2f} of the error of no correction")


CHECKS: tuple[Callable[[Deployment], Item], ...] = (
    check_dataset, check_speed, check_output_range, check_instruction, check_pictures, check_state, check_round_trip,
    check_limits, check_correction, check_exceptions, check_logging,
)  # fmt: skip


def check_deployment(
    path: Path,
    dataset: Path | None,
    task: str | None,
    hz: float,
    threads: int,
    tolerance_s: float = TOLERANCE_S,
    robot: str = DEFAULT_ARM,
) -> list[Item]:
    """Run the eleven checks on the bundle at `path`; its files are verified first. Errors: BundleError, EngineError,
    ConfigError. hz: above 0."""
    arm = load_arm(robot)
    bundle = open_bundle(path)
    bundle.verify()
    # A cut instruction is reported by its own check; the others must still run with it.
    session = PolicySession(
        bundle, load_engine("ort", EngineOptions(threads=threads)), SessionOptions(allow_truncation=True)
    )
    differences: list[str] | None = None
    tasks = [] if task is None else [task]
    scenes, recorded = random_scenes(bundle, task or "do the task"), False
    if dataset is not None:
        from vla_edge.lerobot_data.reader import open_dataset  # its packages are an extra

        with open_dataset(dataset, tolerance_s=tolerance_s) as data:
            differences = robot_differences(bundle, read_tables(bundle), data)
            tasks = tasks or list(dict.fromkeys(data.tasks.values()))
            if not shape_differences(bundle, data):
                scenes, recorded = dataset_scenes(bundle, data, task), True
    deployment = Deployment(bundle, session, scenes, recorded, differences, tasks, hz, arm)
    return [check(deployment) for check in track(CHECKS, "checking", console=Console(stderr=True), transient=True)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, help="folder written by export-engines")
    parser.add_argument(
        "--dataset", type=Path, help="recorded observations of this robot (LeRobot dataset: its folder, or a Hub id)"
    )
    add_tolerance(parser)
    parser.add_argument("--task", help="the instruction that will be given")
    parser.add_argument("--hz", type=positive, default=30.0, help="control rate")
    add_arm(parser)
    place = parser.add_argument_group("does the robot stand as in the data?")
    place.add_argument(
        "--camera", action="append", default=[], metavar="NAME=DEVICE", help="a camera of the robot, to look through"
    )
    place.add_argument("--port", help="serial port of the arm; its positions are read, nothing is moved")
    place.add_argument("--joints", type=Path, help="calibration file of the arm (LeRobot's JSON)")
    place.add_argument(
        "--joint-units", choices=[unit.value for unit in JointUnits], help="joint units, where the bundle does not say"
    )
    add_robot_file(parser)
    parser.add_argument(
        "--threads", type=threads, default=0, help="CPU threads of one graph (default: all physical cores)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the checklist; CheckFailed (exit code 1) when an item failed."""
    cameras = parse_cameras(arguments.camera)
    cameras_named(open_bundle(arguments.bundle), [camera.name for camera in cameras])
    items = check_deployment(
        arguments.bundle, arguments.dataset, arguments.task, arguments.hz, arguments.threads, arguments.tolerance,
        arguments.robot,
    )  # fmt: skip
    bundle, dataset = open_bundle(arguments.bundle), arguments.dataset
    items.append(check_cameras(bundle, dataset, cameras, arguments.tolerance))
    items.append(
        check_start_pose(bundle, dataset, arguments.robot, arguments.port, arguments.joints, arguments.joint_units)
    )
    for number, item in enumerate(items, 1):
        print(f"{number:>2} {item.name:<20} {item.state:<8} {item.found}")
        if item.fix:
            print(f"{'':<32} -> {item.fix}")
    answer({"checks": [asdict(item) for item in items]})
    failed = [item.name for item in items if item.state == FAILED]
    if failed:
        raise CheckFailed(f"{len(failed)} of {len(items)} deployment checks: {', '.join(failed)}; see the arrows above")
    return 0
