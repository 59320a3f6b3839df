# SPDX-License-Identifier: Apache-2.0
"""`vla-runtime run`: starts control and inference (and the simulated arm), arms, obeys the person, ends, sums up.

It moves nothing itself: every motion is decided in the control process.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from vla_edge.bundle import Bundle, open_bundle
from vla_edge.camera_names import feature_key
from vla_edge.command_line import answer, file_to_write, not_negative
from vla_edge.core import load_core
from vla_edge.errors import CheckFailed, ConfigError, ControlError
from vla_edge.robot.arm_description import DEFAULT_ARM, arm_names, load_arm
from vla_edge.robot.robot_file import add_robot_file
from vla_edge.robot.sim.scene import BODIES
from vla_edge.robot.sim.simulator import SimProcess
from vla_edge.runtime.control.children import END_S, AlreadyTold, Child, end, start, wait_until
from vla_edge.runtime.control.control_files import ring_writer
from vla_edge.runtime.control.control_process import add_robot_arguments
from vla_edge.runtime.control.faults import WANTED, fault_of, heat_of
from vla_edge.runtime.control.handover import handover_of
from vla_edge.runtime.control.inference_process import add_policy_arguments, camera_options, session_options
from vla_edge.runtime.control.operator import ask, read_inference, read_status, refusal_of
from vla_edge.runtime.control.person import HELP, KEYS_LINE, Person, Wish
from vla_edge.runtime.control.run_folder import RunFolder, open_run_folder
from vla_edge.runtime.control.run_options import (
    PolicyOptions,
    RobotOptions,
    RunOptions,
    control_words,
    inference_words,
    options_of_arguments,
)
from vla_edge.runtime.control.run_summary import one_line, summarize, tell

START_S = 60.0
"""Checks of an arm take two seconds; a slow port some more."""
READY_S = 300.0
"""Loading engines of the full network on a small host."""
STOP_S = 30.0
"""Slowing down and the slow move to the parking pose."""
REST_S = 2.0
"""Slowing down alone: control tells in how many ticks it does, a fraction of a second."""
WATCH_S = 0.1
ARM_TRIES = 3
SETTLE_S = 0.2
"""In which a torque command that failed shows as a fault."""
RESTARTS = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_robot_arguments(parser)
    known = ", ".join(arm_names())
    parser.add_argument(
        "--robot",
        default=DEFAULT_ARM,
        metavar="ARM",
        help=f"the arm: {known}, a description's path, or sim: a simulated one behind an emulated bus",
    )
    parser.add_argument(
        "--arm", choices=sorted(BODIES), default=DEFAULT_ARM, help="--robot sim: which arm is simulated"
    )
    parser.add_argument(
        "--seconds", type=not_negative, default=0.0, help="stop by itself so long after arming; 0: never"
    )
    parser.add_argument("--no-arm", action="store_true", help="start disarmed; the key a begins")
    parser.add_argument(
        "--camera",
        action="append",
        default=[],
        metavar="NAME=DEVICE",
        help="a camera of the policy; --robot sim has its own",
    )
    add_policy_arguments(parser)
    parser.add_argument(
        "--video", type=file_to_write, metavar="FILE", help="--robot sim: the run as .mp4, or a strip of pictures .png"
    )
    parser.add_argument("--run-dir", type=Path, help="folder shared by the processes")
    add_robot_file(parser)


@dataclass(slots=True)
class Run:
    """The processes of one run, in the order in which they were started."""

    folder: RunFolder
    options: RunOptions
    bundle: Bundle
    cameras: list[str]
    """NAME=DEVICE; none: no inference"""
    heart: Any = None
    """`_core.Heartbeat`: control holds when this process is silent for half a second"""
    sim: Child | None = None
    control: Child | None = None
    inference: Child | None = None
    restarts: int = 0
    ticked: bool = False
    """control has run"""
    wrong: Mapping[str, Any] | None = None
    """the newest status with a fault or a latched hold that nobody asked for, None once the arm was armed again"""
    inference_died: str = ""

    def note(self, status: Mapping[str, Any]) -> None:
        """Keep what went wrong: the stop that follows it changes the reason."""
        if not status["latched"]:
            self.wrong = None
        elif status["reason"] not in WANTED:
            self.wrong = status


def run(arguments: argparse.Namespace) -> int:
    simulated = arguments.robot == "sim"
    if not simulated:
        load_arm(arguments.robot)  # before anything is started
    options = options_of_arguments(
        RunOptions,
        arguments,
        robot=options_of_arguments(RobotOptions, arguments, robot=arguments.arm if simulated else arguments.robot),
        policy=options_of_arguments(PolicyOptions, arguments),
        simulated=simulated,
    )
    return supervise(options)


def supervise(options: RunOptions) -> int:
    """The whole run; its exit code."""
    bundle = open_bundle(options.robot.bundle)
    bundle.manifest.policy.checked_steps(session_options(options.policy, bundle).steps)
    handover_of(options.robot.handover, options.robot.inpaint_horizon, bundle.manifest)
    if not options.simulated and (options.robot.port is None or options.robot.joints is None):
        raise ConfigError(
            "the arm needs --port and --joints: `vla-runtime setup` finds and stores them; --robot sim needs neither"
        )
    if options.arm != DEFAULT_ARM and not options.simulated:
        raise ConfigError(f"--arm {options.arm} names a simulated arm; add --robot sim")
    console = Console(stderr=True)
    cameras = cameras_of(options, bundle)
    if cameras:
        camera_options(bundle, cameras, options.policy.without)
    this = Run(open_run_folder(options.run_dir), options, bundle, cameras)
    if not this.cameras:
        console.print(
            "note: no --camera, so the policy cannot see and nothing is planned: control runs, armed, and holds",
            soft_wrap=True,
        )
    elif options.policy.task is None and bundle.manifest.reads_text:
        raise ConfigError("no --task: say what the arm shall do, in a sentence")
    console.print(f"note: run folder {this.folder.path}", soft_wrap=True, highlight=False)
    interrupted = False
    with Person() as person:
        try:
            _start_all(this, person, console)
            _watch(this, person, console)
        except KeyboardInterrupt:
            interrupted = True  # nothing was armed
        except AlreadyTold as error:
            answer({"error": str(error)})
            return 2
        finally:
            person.heed()
            inference, control, simulated = _end_all(this, person)
        interrupted = interrupted or person.signalled
    if interrupted and not this.ticked:
        raise KeyboardInterrupt  # there is nothing to sum up
    summary = summarize(this.folder, inference, this.wrong, control.get("ailing"))
    summary |= {"simulated_arm": dict(simulated)} if options.simulated else {}
    summary |= {"bundle_digest": bundle.digest, "interrupted": interrupted, "inference_restarts": this.restarts}
    tell(summary, console)
    answer(summary)
    _judge(this, summary)
    return 130 if interrupted else 0


def _judge(this: Run, summary: Mapping[str, Any]) -> None:
    """CheckFailed: the run did not end as its person wanted."""
    replay = f"see `vla-runtime replay {summary['record']}`"
    assert this.control is not None
    if (code := this.control.process.returncode) not in (0, 2):
        raise CheckFailed(f"control ended with exit code {code}: watchdogs or guardian stopped the arm; {replay}")
    expected = WANTED if this.cameras else (*WANTED, "no_action")  # without a planner
    if summary["reason"] not in expected:
        raise CheckFailed(f"the run ended in {summary['state']}: {summary['fault']}; {replay}")
    if this.inference_died:
        raise CheckFailed(f"{this.inference_died}; look at its messages above")
    if this.sim is not None and (code := this.sim.process.returncode):
        raise CheckFailed(f"the simulated arm ended with exit code {code}; look at its message above")


def _start_all(this: Run, person: Person, console: Console) -> None:
    robot, folder = this.options.robot, this.folder
    port, joints = robot.port, robot.joints
    if this.options.simulated:
        sim = simulated_arm(this)
        child = this.sim = start("simulated arm", [*sim.command(), "--commands"], ends_with_us=True)
        wait_until(lambda: bool(child.lines()), START_S * 3, child)
        port, joints = str(sim.port), sim.calibration
    assert port is not None and joints is not None
    core = load_core()
    this.heart = core.Heartbeat(folder.beat)
    control = this.control = start("control", control_words(replace(robot, port=port, joints=joints), folder.path))
    wait_until(lambda: _ticks(folder, control), START_S, control)
    this.ticked = True
    ring_writer(folder)  # forgets what an earlier inference announced
    if this.cameras:
        _start_inference(this)
        assert this.inference is not None
        with console.status("inference starts"):
            wait_until(lambda: _announced(core.ring_notice(folder.ring)), READY_S, control, this.inference)
    person.heed()
    if this.options.no_arm:
        console.print(f"note: not armed; {HELP}, or `vla-runtime arm`", soft_wrap=True)
    else:
        arm(folder, this.heart.beat)
        console.print(f"note: armed; {HELP if person.has_terminal else 'Ctrl-C holds and ends'}", soft_wrap=True)


def _ticks(folder: RunFolder, control: Child) -> bool:
    with contextlib.suppress(ControlError):  # its files are not there yet
        return bool(read_status(folder)["pid"] == control.process.pid)
    return False


def _announced(notice: Any) -> bool:
    """Whether an inference process has told in the ring that it is ready."""
    return notice is not None and bool(notice[-1])


def _start_inference(this: Run) -> None:
    """A restarted one writes a file of inputs of its own."""
    policy, inputs = this.options.policy, this.options.policy.record_inputs
    if inputs is not None and this.restarts:
        policy = replace(policy, record_inputs=inputs.with_name(f"{inputs.name}.{this.restarts}"))
    words = inference_words(policy, this.options.robot, this.folder.path, this.cameras)
    this.inference = start("inference", words)


def arm(folder: RunFolder, beat: Callable[[], None] = lambda: None) -> None:
    """Arm, again when the servos missed the torque command: nothing has moved yet. ControlError: it stays refused."""
    for attempt in range(ARM_TRIES):
        beat()
        answer = ask(folder, "arm")
        time.sleep(SETTLE_S)
        status = read_status(folder)
        if answer.word == "done" and status["state"] != "fault":
            return
        if answer.word not in ("done", "fault", "busy") or attempt == ARM_TRIES - 1:
            raise ControlError(f"the arm was not armed: {fault_of(status) or refusal_of(answer, status)}")


def simulated_arm(this: Run) -> SimProcess:
    """The simulated arm of a run: its cameras give pictures of the size the policy's data had."""
    options = this.options
    sizes = {(camera.height, camera.width) for camera in this.bundle.manifest.cameras}
    if len(sizes) != 1:
        text = ", ".join(f"{width}x{height}" for height, width in sorted(sizes))
        raise ConfigError(
            f"{this.bundle.path}: the policy's cameras have sizes {text}; the simulated arm's cameras have one size"
        )
    (height, width) = sizes.pop()
    return SimProcess(this.folder.path, options.policy.seed, height, width, record=options.video, arm=options.arm)


def cameras_of(options: RunOptions, bundle: Bundle) -> list[str]:
    """The cameras of the run: as given, or the simulated arm's that the policy has."""
    if not options.simulated or options.camera:
        return options.camera
    known = {name for camera in bundle.manifest.cameras for name in (camera.name, camera.source)}
    found = SimProcess(open_run_folder(options.run_dir).path).cameras()
    return [f"{name}=sim:{path}" for name, path in found.items() if feature_key(name) in known]


def _watch(this: Run, person: Person, console: Console) -> None:
    """Until control has ended: shows its status, does what the person asks, starts a dead inference again."""
    assert this.control is not None
    began_s = time.monotonic()
    ending: Wish | None = None
    ends_s = math.inf
    warm = -1
    with console.status("armed") as line:
        while this.control.process.poll() is None:
            wishes = person.wishes(WATCH_S)
            this.heart.beat()
            status = read_status(this.folder)
            text = one_line(status, read_inference(this.folder) if this.inference else {})
            fits = person.has_terminal and len(text) + len(KEYS_LINE) + len("⠋    ") <= console.width
            line.update(text + (f"  [dim]{KEYS_LINE}[/dim]" if fits else ""))
            this.note(status)
            if status["warm_joint"] not in (-1, warm):
                console.print(f"note: {heat_of(status)}", soft_wrap=True)
            warm = status["warm_joint"]
            _keep_inference(this, person, console)
            if ending is None and 0 < this.options.seconds <= time.monotonic() - began_s:
                wishes.append(Wish.STOP)
            for wish in wishes:
                ending, ends_s = _obey(this, wish, person, console)
            if ending is Wish.NOW or time.monotonic() >= ends_s or (ending is Wish.END and at_rest(status)):
                _end_holding(this)
                return


def _obey(this: Run, wish: Wish, person: Person, console: Console) -> tuple[Wish | None, float]:
    """Do what was asked; how the run ends now (None: it goes on), and until when it must have."""
    assert this.control is not None
    try:
        if wish is Wish.STOP:
            this.control.process.terminate()
            return wish, time.monotonic() + STOP_S
        if wish is Wish.NOW:
            return wish, 0.0
        if wish is Wish.END:
            ask(this.folder, "hold")
            return wish, time.monotonic() + REST_S
        if wish is Wish.ARM:
            arm(this.folder, this.heart.beat)
        else:
            answer = ask(this.folder, wish.value)
            if answer.word != "done":
                console.print(f"{wish.value}: {refusal_of(answer, read_status(this.folder))}", soft_wrap=True)
            elif wish in (Wish.HOLD, Wish.REDO) and person.has_terminal:
                console.print("the arm holds: a goes on, p parks, q or Ctrl-C ends holding", soft_wrap=True)
    except ControlError as error:
        console.print(str(error), soft_wrap=True)
    return None, math.inf


def at_rest(status: Mapping[str, Any]) -> bool:
    """No chunk moves the arm any more, and its goals have come to rest."""
    waits = status["latched"] or status["state"] == "disarmed"
    return waits and status["state"] != "parking" and status["tick"] > status["goal_moved_tick"] + 1


def _end_holding(this: Run) -> None:
    """A second interrupt ends control at once, wherever the arm is; some time apart, as two that meet are one."""
    assert this.control is not None
    for patience_s in (WATCH_S, REST_S):
        this.control.process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            this.control.process.wait(patience_s)


def _keep_inference(this: Run, person: Person, console: Console) -> None:
    """Start a dead inference again, the arm holds meanwhile; after the last time tell what that means."""
    if this.inference is None or (code := this.inference.process.poll()) is None or this.inference_died:
        return
    if this.restarts < RESTARTS:
        this.restarts += 1
        console.print(f"inference ended ({code}); started again, the arm holds")
        _start_inference(this)
        return
    this.inference_died = f"inference ended ({code}) after {RESTARTS} restarts and is not started again"
    console.print(f"{this.inference_died}: the arm holds", soft_wrap=True)
    if not person.has_terminal:
        person.ask(Wish.STOP)


def _end_all(this: Run, person: Person) -> tuple[Mapping[str, Any], ...]:
    """End what still runs; the last lines of inference, control and simulated arm. What is asked meanwhile hurries
    it."""

    def hurried(seconds: float) -> bool:
        return bool(person.wishes(seconds))

    if this.control is not None and this.control.process.poll() is None:
        this.control.process.terminate()  # it slows the arm down while the others end
    children = ((this.inference, END_S), (this.control, STOP_S), (this.sim, END_S))
    return tuple({} if child is None else end(child, hurried, patience_s) for child, patience_s in children)
