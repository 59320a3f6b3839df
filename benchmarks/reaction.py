# SPDX-License-Identifier: Apache-2.0
"""From a visible scene change to the first action planned from it: recomputing always against the gated cache.

    python -m vla_edge.benchmarks.reaction --bundle CALIBRATED --out benchmarks/results

Ceiling: one fresh inference, with a prefix of the changed picture, and the tick after it; nothing planned from the
change can be there earlier. What is added is the rest of the inference that was running: a whole one for `always`, a
short one where it was a hit. Two clocks: lockstep, in which an inference takes a set time (a cube is moved at a random
moment, stillness and gate decide); and the real one, in which the inference process and the control loop run as on the
robot, with cameras that show the moved cube from one picture to the next.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from vla_edge.benchmarks.bench_report import bench_parser, write_result
from vla_edge.benchmarks.moving_episodes import move_cube
from vla_edge.bundle import Bundle, open_bundle
from vla_edge.camera_names import PREFIX
from vla_edge.command_line import count, inner_share, positive, run_command
from vla_edge.contract import Frame
from vla_edge.core import load_core
from vla_edge.engines.engine import Engine, EngineOptions, load_engine
from vla_edge.errors import CheckFailed
from vla_edge.robot.arm_description import load_arm
from vla_edge.robot.cameras import FreshnessWatch
from vla_edge.robot.joint_calibration import JointCalibrations, JointUnits
from vla_edge.robot.sim.bodies.arm_body import counts_from_radians
from vla_edge.robot.sim.bodies.koch_body import KOCH
from vla_edge.robot.sim.mjcf import CAMERAS
from vla_edge.robot.sim.scene import random_scene
from vla_edge.robot.sim.simulated_arm import SimOptions, SimulatedArm
from vla_edge.robot.sim.still_arm import StillArm
from vla_edge.runtime.control.control_process import limits_of
from vla_edge.runtime.control.control_settings import ControlSettings, LoopFiles
from vla_edge.runtime.control.handover import HandOverOptions
from vla_edge.runtime.control.inference_loop import InferenceLoop, LoopOptions
from vla_edge.runtime.control.operator import ask
from vla_edge.runtime.control.run_folder import listen, open_run_folder
from vla_edge.runtime.inference.cache import CacheMode
from vla_edge.runtime.inference.session import InferenceRequest, InferenceResult, PolicySession, SessionOptions
from vla_edge.trials.lockstep import observe
from vla_edge.trials.reach_expert import instruction
from vla_edge.trials.reach_task import wanted_colour

FIRST_SEED = 340_000
TICK_S = 1 / 30
START_S = 300.0
POLICIES = (CacheMode.OFF, CacheMode.STILL, CacheMode.GATED)
Pictures = Mapping[str, NDArray[np.uint8]]


@dataclass(frozen=True, slots=True)
class Host:
    """How long an inference takes in lockstep, seconds."""

    fresh_s: float
    reused_s: float


def measured_share(bundle: Bundle, engine: Engine, arm: SimulatedArm) -> float:
    """Time of an inference on a kept prefix over that of a fresh one, here (medians of 30, in turn)."""
    session = PolicySession(bundle, engine, SessionOptions(CacheMode.STILL))
    took: dict[bool, list[float]] = {True: [], False: []}
    sizes = sizes_of(bundle)
    task = instruction(wanted_colour(0))
    for number in range(60):
        if number % 2 == 0:
            session.reset()
        result = session.infer(InferenceRequest(observe(arm, number, number, task, sizes), number))
        assert result is not None
        took[result.decision.hit].append(result.timings.total)
    return float(np.median(took[True]) / np.median(took[False]))


def sizes_of(bundle: Bundle) -> dict[str, tuple[int, int]]:
    return {camera.source: (camera.height, camera.width) for camera in bundle.manifest.cameras}


def lockstep(
    bundle: Bundle, engine: Engine, arm: SimulatedArm, policy: CacheMode, host: Host, changes: int
) -> list[float]:
    """Seconds from each change to the first action planned from it. The arm rests, inferences follow each other, a
    chunk's first action leaves at the next tick of 30 Hz."""
    session = PolicySession(bundle, engine, SessionOptions(policy))
    sizes, waited = sizes_of(bundle), []
    for seed in track(
        range(FIRST_SEED, FIRST_SEED + changes), f"lockstep, {policy.value}", console=Console(stderr=True)
    ):
        rng, colour = np.random.default_rng([seed, 5]), wanted_colour(seed)
        arm.reset(random_scene(seed))
        session.reset()
        now_s, change_s, moved, fresh = 0.0, 4 * host.fresh_s + float(rng.uniform(0, 3 * host.fresh_s)), False, False
        while not fresh:
            if now_s >= change_s and not moved:
                moved = True
                move_cube(arm, colour, rng)
            result = session.infer(
                InferenceRequest(observe(arm, seed, int(now_s * 1e9), instruction(colour), sizes), int(now_s * 1e9))
            )
            assert result is not None
            now_s += host.reused_s if result.decision.hit else host.fresh_s
            fresh = moved and not result.decision.hit
        waited.append(np.ceil(now_s / TICK_S) * TICK_S - change_s)
    return waited


class Window:
    """A camera in front of pictures that somebody changes."""

    exempt_from_freshness = False

    def __init__(self, name: str, picture: NDArray[np.uint8]) -> None:
        self.name, self.picture = name, picture

    def newest(self) -> Frame:
        now = time.monotonic_ns()
        return Frame(self.name, self.picture, now, now)

    def close(self) -> None:
        pass


@dataclass
class PlannedFrom:
    """Notes which chunks were planned from a prefix of pictures taken after `changed_ns` (the session's observer)."""

    changed_ns: int = 1 << 62
    fresh: bool = False
    sequences: set[int] = field(default_factory=set)

    def changed(self) -> None:
        self.sequences.clear()
        self.fresh = False
        self.changed_ns = time.monotonic_ns()

    def inferred(
        self, session: PolicySession, request: InferenceRequest, result: InferenceResult | None, audit: bool
    ) -> None:
        if result is None:
            return
        taken_ns = min(frame.captured_ns for frame in request.observation.frames.values())
        self.fresh = self.fresh or (taken_ns >= self.changed_ns and result.decision.prefix)
        if self.fresh:
            self.sequences.add(request.observation.sequence)

    def was_reset(self) -> None:
        pass


def real_clock(
    bundle: Bundle, engine: Engine, scenes: Sequence[tuple[Pictures, Pictures]], policy: CacheMode
) -> list[float]:
    """Seconds from each change to the tick at which the control loop ran the first action planned from it."""
    core = load_core()
    session = PolicySession(bundle, engine, SessionOptions(policy))
    notes = PlannedFrom()
    session.observer = notes
    rng, waited = np.random.default_rng(1), []
    known = limits_of(load_arm("koch"), JointCalibrations(KOCH.calibration(), "the simulated arm"), JointUnits.DEGREES)
    # An arm without servos has no supply to look at.
    limits = tuple(replace(limit, voltage_min=0, voltage_max=0) for limit in known)
    with tempfile.TemporaryDirectory() as scratch:
        folder = open_run_folder(Path(scratch) / "run")
        listener = listen(folder)
        settings = ControlSettings(limits, round(TICK_S * 1e9), 7, bundle.digest)
        files = LoopFiles(
            folder.ring, folder.state, folder.record, record_cells=1 << 14, socket_fd=listener.fileno(), priority=0,
            arm_at_start=True,
        )  # fmt: skip
        still = StillArm([int(count) for count in counts_from_radians(np.array(random_scene(FIRST_SEED).pose))])
        control = threading.Thread(target=core.control_run, args=(still, settings, files))
        control.start()
        cameras = {PREFIX + name: Window(PREFIX + name, picture) for name, picture in scenes[0][0].items()}
        watches = {name: FreshnessWatch(name, noisy=False, exempt=True) for name in cameras}
        steps = bundle.manifest.policy.num_steps
        task = instruction(wanted_colour(FIRST_SEED))
        planning = LoopOptions(task, HandOverOptions(), steps, steps, replan_s=0.0, audit=0.0)
        loop = InferenceLoop(session, cameras, watches, folder, planning)
        worker = threading.Thread(target=loop.run, args=(0, lambda line: None))
        worker.start()
        try:
            reader = wait_for_motion(folder.state)
            for before, after in track(scenes, f"real clock, {policy.value}", console=Console(stderr=True)):
                _show(cameras, before)
                time.sleep(float(rng.uniform(0.8, 1.2)))
                _show(cameras, after)
                notes.changed()
                waited.append(_wait_for_action(reader, notes))
        finally:
            loop.stop()
            worker.join()
            ask(folder, "stop")
            control.join()
            listener.close()
    return waited


def _show(cameras: Mapping[str, Window], pictures: Pictures) -> None:
    for name, picture in pictures.items():
        cameras[PREFIX + name].picture = picture


def wait_for_motion(state: Path) -> Any:
    """A reader of control's status, once the arm moves. CheckFailed: it does not within START_S."""
    deadline, reader = time.monotonic() + START_S, None
    while time.monotonic() < deadline:
        if reader is None and state.exists():
            reader = load_core().StateReader(state)
        status = None if reader is None else reader.read()
        if status is not None and status["state"] == "moving":
            return reader
        time.sleep(0.01)
    raise CheckFailed(f"the arm did not move within {START_S:g} s; look at what else runs on this machine")


def _wait_for_action(reader: Any, notes: PlannedFrom) -> float:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        status = reader.read()
        if status is not None and status["action_index"] >= 0 and status["action_sequence"] in notes.sequences:
            return (status["tick_ns"] - notes.changed_ns) / 1e9
        time.sleep(0.002)
    raise CheckFailed(
        "no action was planned from a change within 20 s: the gate missed it for longer than max_age_s allows"
    )


def scene_pictures(bundle: Bundle, arm: SimulatedArm, count: int) -> list[tuple[Pictures, Pictures]]:
    """(before, after) the named cube of the first scene moved, each move from where the last one left it."""
    arm.reset(random_scene(FIRST_SEED))
    rng, colour = np.random.default_rng([FIRST_SEED, 6]), wanted_colour(FIRST_SEED)
    made: list[tuple[Pictures, Pictures]] = []
    before: Pictures = {camera: arm.render(camera) for camera in CAMERAS}
    for _ in range(count):
        move_cube(arm, colour, rng)
        after: Pictures = {camera: arm.render(camera) for camera in CAMERAS}
        made.append((before, after))
        before = after
    return made


def quantiles(waited: Sequence[float]) -> dict[str, float]:
    return {
        "p50_ms": float(np.quantile(waited, 0.5) * 1e3),
        "p99_ms": float(np.quantile(waited, 0.99) * 1e3),
        "count": len(waited),
    }


def main(argv: Sequence[str]) -> int:
    about = "time from a scene change to the first action planned from it"
    parser = bench_parser("reaction", about, "calibrated bundle of the reaching task")
    parser.add_argument("--changes", type=count, default=100, help="in lockstep, for each policy")
    parser.add_argument(
        "--real-changes", type=count, default=30, help="on the real clock, for each policy; about a second each"
    )
    parser.add_argument("--fresh-ms", type=positive, default=300.0, help="a fresh inference in lockstep")
    parser.add_argument(
        "--reused-share",
        type=inner_share,
        help="what one on a kept prefix takes of that in lockstep (default: measured here, on this bundle)",
    )
    options = parser.parse_args(argv)
    bundle, engine = open_bundle(options.bundle), load_engine("ort", EngineOptions(threads=options.threads, spin=False))
    height, width = next(iter(sizes_of(bundle).values()))
    arm = SimulatedArm(random_scene(0), SimOptions(height, width))
    here = measured_share(bundle, engine, arm)
    share = here if options.reused_share is None else options.reused_share
    host = Host(options.fresh_ms / 1e3, options.fresh_ms / 1e3 * share)
    scenes = scene_pictures(bundle, arm, options.real_changes)
    print(
        f"ceiling: a fresh inference of {options.fresh_ms:g} ms and the tick after it; on a kept prefix "
        f"{host.reused_s * 1e3:.0f} ms (share {share:.2f}; this bundle here {here:.2f})"
    )
    waited: dict[str, dict[str, list[float]]] = {"lockstep": {}, "real clock": {}}
    for policy in POLICIES:
        waited["lockstep"][policy.value] = lockstep(bundle, engine, arm, policy, host, options.changes)
    arm.close()
    for policy in POLICIES:
        waited["real clock"][policy.value] = real_clock(bundle, engine, scenes, policy)
    by_clock = {clock: {name: quantiles(values) for name, values in rows.items()} for clock, rows in waited.items()}
    for clock, rows in by_clock.items():
        for name, row in rows.items():
            print(
                f"{clock:<11} {name:<7} p50 {row['p50_ms']:6.0f}  p99 {row['p99_ms']:6.0f} ms over {row['count']} "
                "changes"
            )
    line = {"bundle": bundle.digest, "fresh_ms": options.fresh_ms, "reused_share": share, "reused_share_here": here}
    line |= by_clock
    write_result(options.out, "reaction", line)
    print(json.dumps(line))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
