"""`vla-runtime run`: starts control and inference (and the simulated arm), arms, watches, stops, sums up.

It moves nothing itself: every motion is decided in the control process. Ctrl-C
asks control to slow down, park where a pose is stored, and end; a second one
ends it at once with the arm holding.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from vla_edge.bundle import Bundle, open_bundle
from vla_edge.errors import CheckFailed, ConfigError, ControlError
from vla_edge.robot.camera_options import full_name
from vla_edge.robot.sim.simulator import SimProcess
from vla_edge.runtime.control.children import AlreadyTold, Child, end, start, wait_for_line
from vla_edge.runtime.control.control_process import add_robot_arguments, check_seconds, load_core
from vla_edge.runtime.control.flight_record import open_record, tick_times
from vla_edge.runtime.control.inference_process import add_policy_arguments
from vla_edge.runtime.control.operator import REFUSALS, ask, read_status
from vla_edge.runtime.control.run_folder import RunFolder, open_run_folder

START_S = 20.0
"""Checks of an arm take two seconds; a slow port some more."""
READY_S = 300.0
"""Loading engines of the full network on a small host."""
STOP_S = 30.0
"""Slowing down and the slow move to the parking pose."""
WATCH_S = 0.25
ARM_TRIES = 3
SETTLE_S = 0.2
"""In which a torque command that failed shows as a fault."""
RESTARTS = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_robot_arguments(parser)
    parser.add_argument(
        "--robot", choices=["koch", "sim"], default="koch", help="the arm, or a simulated one behind an emulated bus"
    )
    parser.add_argument("--seconds", type=float, default=0.0, help="stop by itself so long after arming; 0: never")
    parser.add_argument(
        "--camera",
        action="append",
        default=[],
        metavar="NAME=DEVICE",
        help="a camera of the policy; --robot sim has its own",
    )
    add_policy_arguments(parser)
    parser.add_argument(
        "--record", type=Path, metavar="FILE", help="--robot sim: the run as .mp4, or a strip of pictures .png"
    )
    parser.add_argument("--run-dir", type=Path, help="folder shared by the processes")
    parser.add_argument("--json", action="store_true", help="last line: the summary as JSON")


@dataclass(slots=True)
class Run:
    """The processes of one run, in the order in which they were started."""

    folder: RunFolder
    arguments: argparse.Namespace
    cameras: list[str]
    """NAME=DEVICE; none: no inference"""
    sim: Child | None = None
    control: Child | None = None
    inference: Child | None = None
    restarts: int = 0
    ticked: bool = False
    """control has run"""
    control_code: int | None = None
    """its exit code"""


def run(arguments: argparse.Namespace) -> int:
    check_seconds(arguments.seconds)
    bundle = open_bundle(arguments.bundle)
    if arguments.robot == "koch" and (arguments.port is None or arguments.joints is None):
        raise ConfigError("--robot koch needs --port and --joints; --robot sim needs neither")
    console = Console(stderr=True)
    this = Run(open_run_folder(arguments.run_dir), arguments, cameras_of(arguments, bundle))
    if not this.cameras:
        console.print(
            "note: no --camera, so the policy cannot see and nothing is planned: control runs, armed, and holds",
            soft_wrap=True,
        )
    elif not arguments.task:
        raise ConfigError("no --task: say what the arm shall do, in a sentence")
    interrupted = False
    before = {number: signal.signal(number, signal.default_int_handler) for number in ending_signals()}
    try:
        try:
            _start_all(this, console)
            _watch(this, console)
        except KeyboardInterrupt:
            interrupted = True
            _stop_control(this, console)
        inference, simulated = _end_all(this)
    except AlreadyTold:
        return 2
    finally:
        _end_all(this)
        for number, handler in before.items():
            signal.signal(number, handler)
    if interrupted and not this.ticked:
        raise KeyboardInterrupt  # there is nothing to sum up
    summary = summarize(this.folder, inference)
    summary |= {"simulated_arm": dict(simulated)} if arguments.robot == "sim" else {}
    summary |= {"bundle_digest": bundle.digest, "interrupted": interrupted, "inference_restarts": this.restarts}
    _tell(summary, console)
    if arguments.json:
        print(json.dumps(summary))
    if this.control_code not in (0, 2):
        raise CheckFailed(
            f"control ended with exit code {this.control_code}: the servos' watchdogs stopped the arm; see "
            f"`vla-runtime replay {summary['record']}`"
        )
    if ended_badly(summary, planned=bool(this.cameras)):
        raise CheckFailed(
            f"the run ended in {summary['state']} ({summary['reason']}); see `vla-runtime replay {summary['record']}`"
        )
    return 130 if interrupted else 0


def ending_signals() -> list[signal.Signals]:
    """What ends a run as Ctrl-C does: SIGTERM, and SIGHUP when the terminal closes, unless `nohup` had it ignored."""
    hang_up = [] if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGTERM, *hang_up]


def _start_all(this: Run, console: Console) -> None:
    arguments, folder = this.arguments, this.folder
    port, joints = arguments.port, arguments.joints
    if arguments.robot == "sim":
        sim = simulated_arm(arguments, folder)
        this.sim = start("simulated arm", sim.command())
        wait_for_line(this.sim, START_S * 3)
        port, joints = sim.port, sim.calibration
    this.control = start("control", control_words(arguments, port, joints, folder))
    _wait_for_control(this)
    core = load_core()
    core.RingWriter(folder.ring)  # forgets what an earlier inference announced
    if this.cameras:
        this.inference = start("inference", inference_words(this))
        _wait_for_inference(this, core, console)
    arm(folder)


def arm(folder: RunFolder) -> None:
    """Arm, again when the servos missed the torque command: nothing has moved yet. ControlError: it stays refused."""
    for attempt in range(ARM_TRIES):
        answer = ask(folder, "arm")
        time.sleep(SETTLE_S)
        status = read_status(folder)
        if answer.word == "done" and status["state"] != "fault":
            return
        if answer.word not in ("done", "fault", "busy") or attempt == ARM_TRIES - 1:
            why = REFUSALS.get(answer.word) or f"control is in fault ({status['reason']}); see `vla-runtime status`"
            raise ControlError(f"the arm was not armed: {f'{answer.joint}: ' if answer.joint else ''}{why}")


def simulated_arm(arguments: argparse.Namespace, folder: RunFolder) -> SimProcess:
    """The simulated arm of a run: its cameras give pictures of the size the policy's data had."""
    sizes = {(camera.height, camera.width) for camera in open_bundle(arguments.bundle).manifest.cameras}
    if len(sizes) != 1:
        told = ", ".join(f"{width}x{height}" for height, width in sorted(sizes))
        raise ConfigError(
            f"{arguments.bundle}: the policy's cameras have sizes {told}; the simulated arm's cameras have one size"
        )
    (height, width) = sizes.pop()
    return SimProcess(folder.path, arguments.seed, height, width, record=arguments.record)


def control_words(arguments: argparse.Namespace, port: Path | str, joints: Path, folder: RunFolder) -> list[str]:
    """How to start the control process of a run."""
    words = ["-m", "vla_edge.runtime.command", "control", "--bundle", str(arguments.bundle), "--port", str(port)]
    words += [
        "--joints",
        str(joints),
        "--hz",
        str(arguments.hz),
        "--handover",
        arguments.handover,
        "--run-dir",
        str(folder.path),
    ]
    words += ["--speed", str(arguments.speed)]
    words += ["--units", arguments.units] if arguments.units else []
    words += ["--parent", str(os.getpid())]
    return words + (["--shadow"] if arguments.shadow else [])


def cameras_of(arguments: argparse.Namespace, bundle: Bundle) -> list[str]:
    """The cameras of the run: as given, or the simulated arm's that the policy has."""
    if arguments.robot == "koch" or arguments.camera:
        return list(arguments.camera)
    known = {name for camera in bundle.manifest.cameras for name in (camera.name, camera.source)}
    found = SimProcess(open_run_folder(arguments.run_dir).path).cameras()
    return [f"{name}=sim:{path}" for name, path in found.items() if full_name(name) in known]


def inference_words(this: Run) -> list[str]:
    """How to start the inference process of a run."""
    told = this.arguments
    words = [
        "-m",
        "vla_edge.runtime.command",
        "inference",
        "--bundle",
        str(told.bundle),
        "--run-dir",
        str(this.folder.path),
    ]
    words += ["--handover", told.handover, "--json", "--parent", str(os.getpid())]
    words += [word for camera in this.cameras for word in ("--camera", camera)]
    words += [word for name in told.without for word in ("--without", name)]
    words += ["--trust-cameras"] if told.trust_cameras else []
    if told.record_inputs is not None:  # a restarted inference writes a file of its own
        words += ["--record-inputs", f"{told.record_inputs}{f'.{this.restarts}' if this.restarts else ''}"]
    names = ("task", "engine", "threads", "cache", "steps", "least_steps", "replan_s", "audit", "seed", "nice")
    for name in (*names, "record_fps", "record_mb"):
        value = getattr(told, name)
        words += [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
    return words


def _wait_for_control(this: Run) -> None:
    assert this.control is not None
    end_s = time.monotonic() + START_S
    while time.monotonic() < end_s:
        this.control.check()
        try:
            if read_status(this.folder)["pid"] == this.control.process.pid:
                this.ticked = True
                return
        except ControlError:
            pass  # its files are not there yet
        time.sleep(0.05)
    raise ControlError(f"control did not tick within {START_S:.0f} s; look at its messages above")


def _wait_for_inference(this: Run, core: Any, console: Console) -> None:
    assert this.inference is not None and this.control is not None
    reader = core.RingReader(this.folder.ring)
    end_s = time.monotonic() + READY_S
    with console.status("inference starts"):
        while time.monotonic() < end_s:
            this.inference.check()
            this.control.check()
            notice = reader.notice()
            if notice is not None and notice[-1]:
                return
            time.sleep(0.05)
    raise ControlError(f"inference was not ready within {READY_S:.0f} s; look at its messages above")


def _watch(this: Run, console: Console) -> None:
    """Until the time is over or control has ended; a dead inference is started again, the arm holds meanwhile."""
    assert this.control is not None
    began_s = time.monotonic()
    with console.status("armed") as line:
        while this.control.process.poll() is None:
            status = read_status(this.folder)
            line.update(one_line(status))
            if this.inference is not None and this.inference.process.poll() is not None and this.restarts < RESTARTS:
                this.restarts += 1
                console.print(f"inference ended ({this.inference.process.returncode}); started again, the arm holds")
                this.inference = start("inference", inference_words(this))
            if this.arguments.seconds > 0 and time.monotonic() - began_s >= this.arguments.seconds:
                break
            time.sleep(WATCH_S)
    _stop_control(this, console)


def _stop_control(this: Run, console: Console) -> None:
    """Ask control to slow down, park and end; what does not answer is ended."""
    if this.control is None or this.control.process.poll() is not None:
        return
    try:
        with console.status("stopping"):
            this.control.process.terminate()
            end_s = time.monotonic() + STOP_S
            while this.control.process.poll() is None and time.monotonic() < end_s:
                time.sleep(0.02)
    except KeyboardInterrupt:
        this.control.process.terminate()


def _end_all(this: Run) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """End what still runs, control last but for the arm it moves; the last lines of inference and simulated arm."""
    told: Mapping[str, Any] = {}
    simulated: Mapping[str, Any] = {}
    if this.inference is not None:
        told = end(this.inference)
    if this.control is not None:
        end(this.control, STOP_S)
        this.control_code = this.control.process.returncode
    if this.sim is not None:
        simulated = end(this.sim)
    this.inference = this.control = this.sim = None
    return told, simulated


def ended_badly(summary: Mapping[str, Any], planned: bool) -> bool:
    """A fault, or a hold that was latched before we asked to stop. Without a planner no action is what to expect."""
    return summary["reason"] not in ("", "operator", "parked") and not (
        summary["reason"] == "no_action" and not planned
    )


def one_line(status: Mapping[str, Any]) -> str:
    """The live line."""
    why = (
        f" ({status['reason']}{', latched: vla-runtime arm' if status['latched'] else ''})" if status["reason"] else ""
    )
    age = f"{status['age_ns'] / 1e6:.0f} ms" if status["age_ns"] >= 0 else "-"
    refused = sum(status["chunks"].values()) - status["chunks"]["taken"]
    clamped = sum(status["verdicts"].values()) - status["verdicts"]["passed"]
    return (
        f"{status['state']}{why}  {1e9 / status['period_ns']:.0f} Hz  missed {status['missed']}  chunks "
        f"{status['chunks']['taken']} "
        f"(+{refused} refused)  age {age}  clamped {clamped}  {'SHADOW' if status['shadow'] else ''}"
    )


def summarize(folder: RunFolder, inference: Mapping[str, Any]) -> dict[str, Any]:
    """The run in numbers: from control's last status, its flight record and inference's own last line."""
    status = read_status(folder)
    record = Path(status["record"])
    chunks = status["chunks"]
    return {
        "state": status["state"],
        "reason": status["reason"],
        "latched": status["latched"],
        "ticks": status["ticks"],
        "missed": status["missed"],
        "hz": 1e9 / status["period_ns"],
        "motion_share": status["moving_ticks"] / max(1, status["ticks"]),
        "chunks_taken": chunks["taken"],
        "chunks_refused": {name: count for name, count in chunks.items() if name != "taken" and count},
        "verdicts": {name: count for name, count in status["verdicts"].items() if count},
        "lost_reads": status["lost_reads"],
        "minor_faults": status["minor_faults"],
        "fifo": status["fifo"],
        "shadow": status["shadow"],
        "io_max_us": status["io_max_ns"] / 1e3,
        "times_us": tick_times(open_record(record)) if os.path.exists(record) else {},
        "record": status["record"],
        "inference": dict(inference),
    }


def _tell(summary: Mapping[str, Any], console: Console) -> None:
    late = summary["times_us"].get("late", {})
    console.print(
        f"{summary['ticks']} ticks, {summary['missed']} missed, start late p50 {late.get('p50', 0):.0f} p99 "
        f"{late.get('p99', 0):.0f} µs; "
        f"{summary['chunks_taken']} chunks, refused {summary['chunks_refused'] or 'none'}; in motion "
        f"{summary['motion_share']:.0%}; "
        f"guard {summary['verdicts'] or 'idle'}",
        soft_wrap=True,
    )
