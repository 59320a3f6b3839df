"""A control process on an emulated servo bus, with the test in the place of inference."""

from __future__ import annotations

import contextlib
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
from tests.machine_stall import TooLate, excused_by_a_stall, timely

from vla_edge.bundle import open_bundle
from vla_edge.contract import KOCH_JOINTS, Chunk, ChunkKind, JointCalibration
from vla_edge.errors import ControlError
from vla_edge.robot.joint_calibration import save_joint_calibration
from vla_edge.robot.sim.emulator_process import EmulatorProcess, emulator_process
from vla_edge.runtime.control.operator import Answer, ask, read_status
from vla_edge.runtime.control.run_folder import RunFolder, default_run_folder
from vla_edge.runtime.control.supervisor import arm

LOW, HIGH = 900, 3200
START_S = 30.0


@dataclass
class Rig:
    folder: RunFolder
    emulator: EmulatorProcess
    bundle: Path
    joints: Path
    control: subprocess.Popen[str]
    flags: tuple[str, ...]
    sequence: int = 0
    writer: Any = None
    digest: str = ""

    def status(self) -> Mapping[str, Any]:
        return read_status(self.folder)

    def ask(self, word: str) -> Answer:
        try:
            return ask(self.folder, word, timeout_s=5.0)
        except ControlError as error:
            raise TooLate(str(error)) from error

    def arm(self) -> None:
        """As `vla-runtime run` does: again when a servo missed the torque command."""
        try:
            arm(self.folder)
        except ControlError as error:
            raise TooLate(str(error)) from error

    def expect(self, state: str, reason: str | None = None) -> Mapping[str, Any]:
        """The status now; it must be this one, unless the machine stalled."""
        status = self.status()
        told = f"{state} {reason or ''} was expected, it is {status['state']} {status['reason']}"
        timely(status["state"] == state and reason in (None, status["reason"]), told)
        return status

    def wait(self, what: Callable[[Mapping[str, Any]], bool], timeout_s: float = 10.0) -> Mapping[str, Any]:
        """The first status for which `what` holds."""
        end_s = time.monotonic() + timeout_s
        while time.monotonic() < end_s:
            status = self.status()
            if what(status):
                return status
            time.sleep(0.003)
        raise TooLate(f"not within {timeout_s} s: {self.status()}")

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
        middle = np.array([0, 0, 0, 0, 0, 50.0])
        values = middle + amplitude * np.sin(due_ns * 1.8e-9)[:, None]
        if kind is ChunkKind.REST:
            present = np.array(status["positions"])
            values = present + (values - values[0])
        return self.chunk(values.astype(np.float32), kind, status)

    def move(self, seconds: float, until: str = "moving", kind: ChunkKind = ChunkKind.MOVING) -> Mapping[str, Any]:
        """Plan all the time, as inference on a fast host does, and on until that state is there; its status."""
        end_s = time.monotonic() + seconds
        while True:
            self.wave(kind=kind)
            time.sleep(0.1)
            status = self.status()
            if time.monotonic() >= end_s and status["state"] == until:
                return status
            if time.monotonic() >= end_s + 10.0:
                raise TooLate(f"not {until} within ten seconds more: {status}")

    def goals(self) -> list[tuple[int, NDArray[np.int64]]]:
        """(time, six counts) of every goal the servos accepted, from the emulator's own log."""
        return [
            (entry["t"], np.array([entry["goals"][str(i + 1)] for i in range(6)]))
            for entry in self.emulator.entries("goal")
            if len(entry["goals"]) == 6
        ]

    def start_control(self) -> None:
        self.control = start_control(self.folder, self.emulator.port, self.bundle, self.joints, self.flags)
        wait_for_tick(self.folder, self.control)

    def stop(self) -> str:
        """Ask to stop; what it printed."""
        self.control.terminate()
        out, _ = self.control.communicate(timeout=30)
        return out


def start_control(
    folder: RunFolder, port: Path, bundle: Path, joints: Path, flags: Sequence[str]
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


def wait_for_tick(folder: RunFolder, control: subprocess.Popen[str]) -> None:
    end_s = time.monotonic() + START_S
    while time.monotonic() < end_s:
        if control.poll() is not None:
            raise AssertionError(f"control ended: {control.communicate()}")
        with contextlib.suppress(ControlError):
            status = read_status(folder)
            if status["pid"] == control.pid and status["reading_tick"] >= 0:
                return
        time.sleep(0.005)
    raise TooLate("control does not tick")


def write_joints(path: Path) -> None:
    save_joint_calibration([JointCalibration(name, i + 1, 0, 0, LOW, HIGH) for i, name in enumerate(KOCH_JOINTS)], path)


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
def rig(bundle: Path, *flags: str, armed: bool = True, emulator: Sequence[str] = ()) -> Iterator[Rig]:
    """Emulator and control process, armed and waiting for chunks."""
    from vla_edge import _core

    with short_folder() as path:
        joints = path / "joints.json"
        write_joints(joints)
        with emulator_process(path, "--joints", str(joints), *emulator) as bus:
            folder = RunFolder(path)
            control = start_control(folder, bus.port, bundle, joints, flags)
            made = Rig(folder, bus, bundle, joints, control, tuple(flags), digest=open_bundle(bundle).digest)
            try:
                with excused_by_a_stall(
                    lambda: {"servo bus": bus.process.pid, "control loop": made.control.pid, "test": os.getpid()}
                ):
                    wait_for_tick(folder, control)
                    made.writer = _core.RingWriter(folder.ring)
                    made.writer.announce(p99_ns=50_000_000, plan_then_move=False)
                    if armed:
                        made.arm()
                    yield made
            finally:
                if made.control.poll() is None:
                    made.control.kill()
                made.control.communicate()


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
