# SPDX-License-Identifier: Apache-2.0
"""The inference process: newest pictures and joints → chunk → ring, again and again. Control never waits for it."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import combinations
from pathlib import Path
from types import FrameType
from typing import TypeVar

from vla_edge.bundle import Bundle, open_bundle
from vla_edge.camera_names import short_name
from vla_edge.command_line import answer, between, count, file_to_write, fraction, not_negative, whole
from vla_edge.engines.engine import EngineOptions, add_engine_arguments, load_engine
from vla_edge.errors import CameraError, ConfigError
from vla_edge.robot.camera_options import CameraOptions, parse_cameras
from vla_edge.robot.cameras import Camera, FreshnessWatch, open_camera
from vla_edge.robot.robot_file import add_robot_file
from vla_edge.runtime.control.children import end_with
from vla_edge.runtime.control.handover import add_handover_arguments, handover_of
from vla_edge.runtime.control.identity import cameras_named, check_camera_places, check_picture_sizes
from vla_edge.runtime.control.inference_loop import InferenceLoop, LoopOptions
from vla_edge.runtime.control.picture_tap import THUMBNAIL_FPS, PictureTap, SharedCamera
from vla_edge.runtime.control.run_folder import RunFolder, open_run_folder
from vla_edge.runtime.control.run_options import InferenceOptions, PolicyOptions, options_of_arguments
from vla_edge.runtime.inference.cache import add_cache_argument
from vla_edge.runtime.inference.input_record import InputRecorder, RecordedSession
from vla_edge.runtime.inference.refresh import Refresh
from vla_edge.runtime.inference.session import (
    Noise,
    PolicySession,
    SessionOptions,
    add_flow_steps_argument,
    add_noise_argument,
    cache_mode,
    gate_settings,
)
from vla_edge.runtime.inference.units import remarks

FIRST_PICTURE_S = 10.0
"""How long a camera may take to deliver its first picture."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run-dir", type=Path, help="folder shared with control")
    parser.add_argument(
        "--camera",
        action="append",
        default=[],
        metavar="NAME=DEVICE",
        help="one for each camera of the policy; see `vla-runtime cameras`",
    )
    parser.add_argument("--seconds", type=not_negative, default=0.0, help="end by itself after so long; 0: never")
    parser.add_argument(
        "--parent", type=int, metavar="PID", help="the process that started this one: stop when it dies"
    )
    add_handover_arguments(parser)
    add_policy_arguments(parser)
    parser.add_argument("--bundle", type=Path, required=True, help="folder written by export-engines")
    add_robot_file(parser, by_itself=False)


def add_policy_arguments(parser: argparse.ArgumentParser) -> None:
    """What `run` takes too."""
    policy = parser.add_argument_group("the policy and how it is computed")
    policy.add_argument("--task", help="what the arm shall do, in a sentence; not needed where the policy reads none")
    policy.add_argument(
        "--without", action="append", default=[], metavar="NAME", help="run without this camera of the policy"
    )
    policy.add_argument(
        "--trust-cameras",
        action="store_true",
        help="start although the cameras' pictures look swapped or have another shape than in the data",
    )
    add_engine_arguments(policy)
    cache = parser.add_argument_group("reusing what the pictures gave")
    add_cache_argument(cache)
    cache.add_argument(
        "--refresh",
        choices=[kind.value for kind in Refresh],
        default=Refresh.FRONT.value,
        help="where a prefix is made anew: in front of the plan that needs it, or beside the plans, which go on with "
        "the last one while it is young enough (default: front)",
    )
    add_flow_steps_argument(policy)
    policy.add_argument(
        "--least-flow-steps", type=count, help="fewest steps when a chunk would come late (default: as --flow-steps)"
    )
    policy.add_argument(
        "--replan-s", type=between(0, 60), default=0.25, help="least time between two plans while moving"
    )
    cache.add_argument(
        "--audit", type=fraction, default=0.02, help="share of cache hits that are computed again, 0 to 1"
    )
    policy.add_argument("--seed", type=whole, default=0, help="seed of the noise")
    record = add_service_arguments(parser, policy)
    record.add_argument(
        "--record-fps",
        type=between(0, 120),
        default=0.0,
        help="write the cameras' pictures too, so often a second, for exported episodes",
    )


def add_service_arguments(parser: argparse.ArgumentParser, policy: argparse._ArgumentGroup) -> argparse._ArgumentGroup:
    """What `serve` takes too; the group of the record of inputs."""
    add_noise_argument(policy)
    policy.add_argument(
        "--nice", type=between(0, 19, int), default=10, help="priority of this process, 0 to 19; control comes first"
    )
    record = parser.add_argument_group("recording the inputs")
    record.add_argument(
        "--record-inputs", type=file_to_write, metavar="FILE", help="write the exact inputs of every inference"
    )
    record.add_argument("--record-mb", type=count, default=2048, help="size limit of that file")
    return record


def run(arguments: argparse.Namespace) -> int:
    options = options_of_arguments(InferenceOptions, arguments)
    end_with(options.parent)
    os.nice(options.nice)
    bundle = open_bundle(options.bundle)
    if options.task is None and bundle.manifest.reads_text:
        raise ConfigError("no --task: say what the arm shall do, in a sentence")
    devices = camera_options(bundle, options.camera, options.without)
    engine = load_engine(options.backend, EngineOptions(threads=options.threads, spin=False))
    session = PolicySession(bundle, engine, session_options(options, bundle))
    session.check_task(options.task or "")
    settings = loop_options(options, session)
    for remark in remarks(bundle, session.preparer.tables):
        say(f"note: {remark}")
    say(f"inference: bundle {bundle.digest[:12]}, {engine.detail}, {session.loop.name} flow loop")
    cameras: Mapping[str, Camera] = {name: SharedCamera(camera) for name, camera in open_cameras(devices).items()}
    pictures = {name: camera.newest().image for name, camera in cameras.items()}
    if not options.trust_cameras:
        check_picture_sizes(bundle, pictures)
        check_camera_places(bundle, session.preparer.tables, pictures)
    folder = open_run_folder(options.run_dir)
    recorder = input_recorder(options, session)
    tap = picture_tap(options, cameras, folder, recorder)
    tap.start()
    try:
        watches = {
            option.name: FreshnessWatch(
                option.name, option.noisy, cameras[option.name].exempt_from_freshness, fps=option.fps, say=say
            )
            for option in devices
        }
        loop = InferenceLoop(session, cameras, watches, folder, settings)
        with stopped_by_signals(loop.stop):
            summary = loop.run(options.seconds, say)
    finally:
        tap.close()
        for camera in cameras.values():
            camera.close()
        if recorder is not None:
            recorder.close()
    answer(summary)
    return 0


def session_options(options: PolicyOptions, bundle: Bundle) -> SessionOptions:
    """The session's options from the command line. ConfigError: a cache or a refresh that this bundle cannot have."""
    refresh, noise = Refresh(options.refresh), Noise(options.noise)
    cache = cache_mode(options.cache, bundle, refresh)
    made = SessionOptions(cache, options.seed, options.flow_steps, noise=noise, refresh=refresh)
    gate_settings(bundle, made)
    return made


def input_recorder(options: InferenceOptions, session: PolicySession) -> InputRecorder | None:
    """The record of inputs that was asked for, listening to the session already."""
    if options.record_inputs is None:
        return None
    recorder = InputRecorder(options.record_inputs, options.record_mb << 20, say)
    session.observer = RecordedSession(recorder, 1, session, options.backend, options.threads)
    return recorder


def picture_tap(
    options: InferenceOptions, cameras: Mapping[str, Camera], folder: RunFolder, recorder: InputRecorder | None
) -> PictureTap:
    """Thumbnails for the status page; every picture for the record where --record-fps asks for it."""
    keep = recorder.picture if recorder is not None and options.record_fps > 0 else None
    return PictureTap(cameras, folder, options.record_fps or THUMBNAIL_FPS, keep, say)


def loop_options(options: InferenceOptions, session: PolicySession) -> LoopOptions:
    """The loop's options from the command line. ConfigError names the flag."""
    policy = session.policy
    most = policy.num_steps if options.flow_steps is None else options.flow_steps
    least = most if options.least_flow_steps is None else options.least_flow_steps
    if not policy.min_steps <= least <= most:
        raise ConfigError(f"--least-flow-steps is {least}; it must be {policy.min_steps} to {most}")
    handover = handover_of(options.handover, options.inpaint_horizon, session.bundle.manifest)
    return LoopOptions(options.task or "", handover, most, least, options.replan_s, options.audit)


def camera_options(bundle: Bundle, given: list[str], without: list[str]) -> tuple[CameraOptions, ...]:
    """The cameras to open: every one of the policy, under its name before or after `rename_map`, unless told otherwise;
    its empty cameras only when they are given.

    ConfigError: one is missing, unknown, or both given and left out.
    """
    options = parse_cameras(given)
    left_out = {parse_cameras([f"{name}=0"])[0].name for name in without}
    known = cameras_named(bundle, [*(option.name for option in options), *left_out])
    covered = {known[option.name].name for option in options}
    for first, second in combinations(options, 2):
        if known[first.name].name == known[second.name].name:
            raise ConfigError(
                f"cameras {short_name(first.name)} and {short_name(second.name)} are one camera of the policy; give "
                "one of them"
            )
        if first.kind == second.kind != "file" and first.device == second.device:
            raise ConfigError(
                f"cameras {short_name(first.name)} and {short_name(second.name)} both read {first.device}; give each "
                f"its own device, or leave one out with --without {short_name(second.name)}"
            )
    missing = [
        short_name(camera.source)
        for camera in bundle.manifest.cameras
        if camera.name not in covered and not camera.placeholder and not {camera.name, camera.source} & left_out
    ]
    if missing:
        raise ConfigError(
            f"camera {missing[0]} of the policy is not given; give --camera {missing[0]}=DEVICE, or --without "
            f"{missing[0]} to run without it"
        )
    both = [option.name for option in options if known[option.name].name in {known[name].name for name in left_out}]
    if both:
        raise ConfigError(f"camera {short_name(both[0])} is given and left out; drop one of --camera and --without")
    return options


def open_cameras(options: tuple[CameraOptions, ...]) -> Mapping[str, Camera]:
    """Open every camera and wait for its first picture. CameraError after FIRST_PICTURE_S."""
    cameras: dict[str, Camera] = {}
    deadline = time.monotonic() + FIRST_PICTURE_S
    try:
        for option in options:
            cameras[option.name] = _until(deadline, partial(open_camera, option))
            _until(deadline, cameras[option.name].newest)
    except CameraError:
        for camera in cameras.values():
            camera.close()
        raise
    return cameras


Made = TypeVar("Made")


def _until(deadline: float, attempt: Callable[[], Made]) -> Made:
    while True:
        try:
            return attempt()
        except CameraError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.1)


@contextmanager
def stopped_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Within the block SIGTERM and SIGINT call `stop`; a second one ends the process as usual."""

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(number: int, frame: FrameType | None) -> None:
        restore()
        stop()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        restore()


def say(line: str) -> None:
    """One line for the person at the terminal; standard output belongs to the summary."""
    print(line, file=sys.stderr, flush=True)
