# SPDX-License-Identifier: Apache-2.0
"""A control process on an emulated servo bus, with the test in the place of inference.

Whatever a test waits for, it waits for `EVENT_S`: long enough for a machine that is ten times as busy as any.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_edge.bundle import open_bundle
from vla_edge.contract import Chunk, ChunkKind, JointCalibration
from vla_edge.errors import ControlError
from vla_edge.robot.arm_description import ArmDescription, load_arm
from vla_edge.robot.joint_calibration import save_joint_calibration
from vla_edge.robot.sim.emulator_process import EmulatorProcess, emulator_process
from vla_edge.runtime.control.flight_record import open_record, ticks_of
from vla_edge.runtime.control.operator import Answer, ask, is_alive, read_status
from vla_edge.runtime.control.run_folder import RunFolder, default_run_folder

KOCH = load_arm("koch")
LOW, HIGH = 900, 3200
EVENT_S = 240.0
GAPS = ("reads_lost", "watchdog", "no_action", "supervisor", "guardian")
"""Reasons to latch that a machine gives which keeps the servo bus, the loop or the test from running."""
PATIENT_NS = 10**12
"""A test in the place of inference may be late: the hold latches when the pilot's own limit, a minute, is over."""
STARTS = 5


@dataclass
class Rig:
    folder: RunFolder
    emulator: EmulatorProcess
    bundle: Path
    joints: Path
    control: subprocess.Popen[str]
    flags: tuple[str, ...]
    description: ArmDescription = KOCH
    sequence: int = 0
    writer: Any = None
    digest: str = ""
    stolen_before_s: float = 0.0
    sides: tuple[EmulatorProcess, ...] = ()
    """The emulator of each of its ports; `emulator` is the first."""

    def status(self) -> Mapping[str, Any]:
        return read_status(self.folder)

    def ask(self, word: str) -> Answer:
        return ask(self.folder, word, timeout_s=EVENT_S)

    def arm(self) -> None:
        """Again when a servo missed the torque command or a reading was lost, as `vla-runtime run` does."""
        end_s = time.monotonic() + EVENT_S
        while True:
            answer = self.ask("arm")
            status = self.wait(lambda status: status["reading_tick"] == status["tick"])
            if answer.word == "done" and status["state"] != "fault":
                return
            assert answer.word in ("done", "fault", "busy") and time.monotonic() < end_s, f"{answer} {status}"

    def announce(self, p99_ns: int = PATIENT_NS) -> None:
        """As inference does when it has measured itself: the hold latches after three times as long."""
        self.writer.announce(p99_ns=p99_ns, plan_then_move=False)

    def expect(self, state: str, reason: str | None = None) -> Mapping[str, Any]:
        """The status now, which must be this one."""
        status = self.status()
        told = f"{state} {reason or ''} was expected, it is {status['state']} {status['reason']}"
        assert status["state"] == state and reason in (None, status["reason"]), told
        return status

    def wait(self, what: Callable[[Mapping[str, Any]], bool]) -> Mapping[str, Any]:
        """The first status for which `what` holds."""
        end_s = time.monotonic() + EVENT_S
        while not what(status := self.status()):
            assert time.monotonic() < end_s and is_alive(status["pid"]), f"did not happen: {status}"
            time.sleep(0.003)
        return status

    def pass_ticks(self, count: int) -> Mapping[str, Any]:
        """The status when so many more ticks have run, with a reading of its own tick."""
        now = self.status()["tick"]
        return self.wait(lambda status: status["tick"] >= now + count and status["reading_tick"] == status["tick"])

    def until_logged(self, kind: str, count: int) -> None:
        """Until the servos' log holds so many entries of a kind."""
        end_s = time.monotonic() + EVENT_S
        while (found := len(self.emulator.entries(kind))) < count:
            assert time.monotonic() < end_s, f"{found} entries of kind {kind}, not {count}"
            time.sleep(0.02)

    def taken_s(self) -> float:
        """Seconds that this machine's host gave to others since the rig was made, of all cores."""
        return stolen_s() - self.stolen_before_s

    def store_parking_pose(self, counts: int = 2148) -> None:
        """Ends control and stores a pose, all joints at one count: control that is started now reads it."""
        self.stop()
        self.joints.with_suffix(".park.json").write_text(
            json.dumps(dict.fromkeys(self.description.joint_names, counts))
        )

    def judge_in_time(self, status: Mapping[str, Any]) -> None:
        """No tick is missed but those that the host of this machine can have taken; without SCHED_FIFO any process can
        hold the core."""
        allowed = 0 if status["fifo"] else 2 + status["ticks"] // 1000
        allowed += int(self.taken_s() * 1e9 / status["period_ns"])
        assert status["missed"] <= allowed, pace_of(status, self.taken_s())

    def ticks(self, after: int = -1) -> list[Mapping[str, Any]]:
        """What the record holds of the ticks behind this one."""
        return [tick for tick in ticks_of(open_record(self.folder.record)) if tick["tick"] > after]

    def chunk(
        self, actions: NDArray[np.float32], kind: ChunkKind = ChunkKind.MOVING, status: Mapping[str, Any] | None = None
    ) -> int:
        """Write a chunk of joint units [n, k] observed now; its sequence."""
        status = self.status() if status is None else status
        self.sequence += 1
        self.writer.write(
            Chunk(
                kind,
                status["session"],
                self.digest,
                self.sequence,
                status["reading_tick"],
                status["reading_ns"],
                np.ascontiguousarray(actions, np.float32),
            )
        )
        return self.sequence

    def wave(self, n: int = 50, kind: ChunkKind = ChunkKind.MOVING, amplitude: float = 20.0) -> int:
        """A smooth motion that goes on from one chunk to the next: joint units as a function of the time."""
        status = self.status()
        due_ns = status["reading_tick"] * status["period_ns"] + np.arange(n) * status["action_ns"]
        middle = np.array([50.0 if name.endswith("gripper") else 0.0 for name in self.description.joint_names])
        values = middle + amplitude * np.sin(due_ns * 1.8e-9)[:, None]
        if kind is ChunkKind.REST:
            present = np.array(status["positions"])
            values = present + (values - values[0])
        return self.chunk(values.astype(np.float32), kind, status)

    def move(self, ticks: int, until: str = "moving", kind: ChunkKind = ChunkKind.MOVING) -> Mapping[str, Any]:
        """Plan all the time, as inference on a fast host does, until so many ticks were moved in and that state is
        there; its status. A gap that the machine made is armed again, when motion is what is wanted."""
        status = self.status()
        end_s = time.monotonic() + EVENT_S + 4e-9 * ticks * status["period_ns"]
        first = status["moving_ticks"]
        while True:
            self.wave(kind=kind)
            time.sleep(0.1)
            status = self.status()
            if status["state"] == until and (until != "moving" or status["moving_ticks"] - first >= ticks):
                return status
            if until == "moving" and status["latched"] and status["reason"] in GAPS:
                self.arm()
            assert time.monotonic() < end_s, f"not {until}: {status}"

    def goals(self) -> list[tuple[int, NDArray[np.int64]]]:
        """(time, counts of all joints) of every goal the servos accepted, from the emulator's own log."""
        ids = self.description.ids.values()
        return [
            (entry["t"], np.array([entry["goals"][str(servo)] for servo in ids]))
            for entry in self.emulator.entries("goal")
            if len(entry["goals"]) == len(ids)
        ]

    def given(self, ticks: Sequence[Mapping[str, Any]]) -> int:
        """How many of these ticks have a reading; each must be one that the servos gave during that very tick."""
        answers = self.emulator.entries("answer")
        times = np.array([answer["t"] for answer in answers])
        places = [
            tuple(answer["positions"].get(str(servo)) for servo in self.description.ids.values()) for answer in answers
        ]
        read = [tick for tick in ticks if tick["read_result"] == 0]
        for tick in read:
            first, last = (
                np.searchsorted(times, tick["now_ns"]),
                np.searchsorted(times, tick["reading_ns"], side="right"),
            )
            assert tuple(tick["position"]) in places[first:last], f"nobody gave this reading: {tick}"
        return len(read)

    def start_control(self) -> None:
        self.control = started(self.folder, port_of(self.sides), self.bundle, self.joints, self.flags)

    def stop(self) -> str:
        """Ask to stop; what it printed."""
        self.control.terminate()
        out, _ = self.control.communicate(timeout=EVENT_S)
        return out


def port_of(sides: Sequence[EmulatorProcess]) -> str:
    """`--port` of an arm whose buses these are."""
    return ",".join(str(side.port) for side in sides)


def start_control(
    folder: RunFolder, port: Path | str, bundle: Path, joints: Path, flags: Sequence[str]
) -> subprocess.Popen[str]:
    words = [
        "-m",
        "vla_edge.runtime.command",
        "control",
        "--bundle",
        str(bundle),
        "--port",
        str(port),
        "--joints",
        str(joints),
    ]
    return subprocess.Popen(
        [sys.executable, *words, "--run-dir", str(folder.path), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def started(
    folder: RunFolder, port: Path | str, bundle: Path, joints: Path, flags: Sequence[str]
) -> subprocess.Popen[str]:
    """Control that ticks; again where a busy machine made the emulated servos too slow for the rate."""
    for attempt in range(STARTS):
        control = start_control(folder, port, bundle, joints, flags)
        try:
            wait_for_tick(folder, control)
            break
        except AssertionError as error:
            if "readings took longer" not in str(error) or attempt == STARTS - 1:
                raise
    return control


def wait_for_tick(folder: RunFolder, control: subprocess.Popen[str]) -> None:
    end_s = time.monotonic() + EVENT_S
    while time.monotonic() < end_s:
        assert control.poll() is None, f"control ended: {control.communicate()}"
        with contextlib.suppress(ControlError):
            status = read_status(folder)
            if status["pid"] == control.pid and status["reading_tick"] >= 0:
                return
        time.sleep(0.005)
    raise AssertionError("control does not tick")


def write_joints(path: Path, arm: ArmDescription = KOCH) -> None:
    save_joint_calibration([JointCalibration(name, servo, 0, 0, LOW, HIGH) for name, servo in arm.ids.items()], path)


def stolen_s() -> float:
    """Seconds that this machine's cores were ready to run and its host gave to others, since it was started."""
    return int(Path("/proc/stat").read_text().split()[8]) / os.sysconf("SC_CLK_TCK")


def pace_of(status: Mapping[str, Any], taken_s: float) -> str:
    """What a long form is asked for, of the last control process: `pytest -rP` shows it of a test that passed too."""
    return (
        f"{status['ticks']} ticks of {status['period_ns'] / 1e6:.1f} ms, {status['missed']} missed, "
        f"latest {status['late_max_ns'] / 1e6:.2f} ms, bus at most {status['io_max_ns'] / 1e6:.2f} ms, "
        f"{status['lost_reads']} readings lost, {taken_s:.2f} s taken by the machine's host"
    )


@contextlib.contextmanager
def short_folder() -> Iterator[Path]:
    """A run folder with a path short enough for a socket, in memory where the default one is."""
    base = default_run_folder().parent
    folder = Path(tempfile.mkdtemp(prefix="vla-", dir=base if base.is_dir() else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def rig(
    bundle: Path, *flags: str, arm: str = "koch", armed: bool = True, emulator: Sequence[str] = ()
) -> Iterator[Rig]:
    """Emulator and control process, armed and waiting for chunks. arm: its name or its description's path."""
    from vla_edge import _core

    known = load_arm(arm)
    if known.units_must_be_known and "--joint-units" not in flags:
        flags = (*flags, "--joint-units", "range_m100_100")
    flags = (*flags, "--robot", arm)
    before_s = stolen_s()
    with short_folder() as path:
        joints = path / "joints.json"
        write_joints(joints, known)
        with contextlib.ExitStack() as ports:
            sides = []
            for side in range(known.buses):
                place = path / ("right" if side else ".")
                place.mkdir(exist_ok=True)
                words = ("--arm", arm, "--joints", str(joints), "--bus", str(side), *emulator)
                sides.append(ports.enter_context(emulator_process(place, *words)))
            folder = RunFolder(path)
            control = started(folder, port_of(sides), bundle, joints, flags)
            digest = open_bundle(bundle).digest
            made = Rig(folder, sides[0], bundle, joints, control, flags, known, digest=digest, stolen_before_s=before_s)
            made.sides = tuple(sides)
            try:
                wait_for_tick(folder, control)
                made.writer = _core.RingWriter(made.folder.ring)
                made.announce()
                if armed:
                    made.arm()
                yield made
            finally:
                if made.control.poll() is None:
                    made.control.kill()
                made.control.communicate()
                with contextlib.suppress(ControlError):  # the test took its files
                    print(pace_of(made.status(), made.taken_s()))


@contextlib.contextmanager
def busy_cpu() -> Iterator[None]:
    """A matrix product on two threads beside the test."""
    code = "import numpy as np\na = np.random.rand(600, 600)\nwhile True: a @ a"
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}
    with subprocess.Popen(["nice", "-n", "10", sys.executable, "-c", code], env=environment) as process:
        try:
            yield
        finally:
            process.kill()
