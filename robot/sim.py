"""The simulated arm as a process of its own: physics behind the emulated servo bus, cameras in shared frames.

    python -m vla_edge.robot.sim --run-dir DIR

Makes in DIR `servo-bus` (a link to the pseudo-terminal; give it as the Koch's
port), `calibration.json` (the simulated arm's joint calibration) and
`frames.laptop`, `frames.phone`. Prints one JSON line when everything is there
and then serves until SIGTERM, SIGINT or `quit` on standard input (`--commands`);
its last line says how far the tip is from each cube.
Physics runs at the rate of the wall clock in the process that answers the bus
(before ordinary processes where that is allowed); pictures are rendered in
another one, from a copy of the configuration.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import re
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_edge.contract import KOCH_JOINTS
from vla_edge.errors import BusError, CameraError, ConfigError, VlaEdgeError, run_command
from vla_edge.robot.bus_log import open_log
from vla_edge.robot.emulated_bus import EmulatedBus
from vla_edge.robot.emulator import Emulator, Terminal, koch_servos, try_realtime
from vla_edge.robot.faults import FaultRates, Faults
from vla_edge.robot.frames import FrameWriter
from vla_edge.robot.joint_calibration import JointCalibrations, save_joint_calibration
from vla_edge.robot.mjcf import CAMERAS, CUBE_COLOURS, SERVOS, ZERO_COUNT
from vla_edge.robot.plant import PlantState
from vla_edge.robot.recording import Recording
from vla_edge.robot.render import BACKENDS
from vla_edge.robot.scene import random_scene
from vla_edge.robot.simulated_arm import (
    RADIANS_PER_COUNT,
    SimOptions,
    SimulatedArm,
    counts_from_radians,
    simulated_calibration,
)

PORT = "servo-bus"
CALIBRATION = "calibration.json"
FRAMES = "frames."
_STALL_MA = {1.4: 1400.0, 0.52: 1470.0}
"""Stall current of the XL430-W250 and XL330-M288 (data sheets), by stall torque in N·m."""
_VIEWER_SIZE = (360, 480)
_RECORD_FPS = 10


@dataclass(frozen=True, slots=True)
class SimProcess:
    """run_dir: where the files are made. scene: seed of the cubes and the first pose. record: .mp4 or .png to write."""

    run_dir: Path
    scene: int = 0
    height: int = 480
    width: int = 640
    fps: float = 30.0
    renderer: str = "egl"
    record: Path | None = None
    log: Path | None = None

    @property
    def port(self) -> Path:
        """The link to the servo bus's terminal."""
        return self.run_dir / PORT

    @property
    def calibration(self) -> Path:
        """The joint calibration this arm was made with."""
        return self.run_dir / CALIBRATION

    def cameras(self) -> dict[str, Path]:
        """Short camera name -> its frames file."""
        return {camera: self.run_dir / f"{FRAMES}{camera}" for camera in CAMERAS}

    def command(self) -> list[str]:
        """How to start this process: the arguments after the interpreter."""
        words = ["-m", "vla_edge.robot.sim", "--run-dir", str(self.run_dir), "--scene", str(self.scene)]
        words += ["--size", f"{self.width}x{self.height}", "--fps", str(self.fps), "--renderer", self.renderer]
        for flag, path in (("--record", self.record), ("--log", self.log)):
            words += [flag, str(path)] if path is not None else []
        return words


class SimPlant:
    """The simulated arm as the mechanics behind the emulated servos (`robot.plant.Plant`).

    Until torque is first switched on a stand holds the arm in its first pose; without torque it falls from then on.
    """

    def __init__(self, arm: SimulatedArm) -> None:
        self._arm = arm
        self._last_ns: int | None = None
        self._driven = [True] * len(KOCH_JOINTS)
        self._on_stand = arm.positions
        self._stand = True
        stall = [SERVOS[name].stall_nm for name in KOCH_JOINTS]
        self._ma_per_nm = np.array([_STALL_MA[torque] / torque for torque in stall])
        self.size = len(arm.configuration)
        self.shared: SharedConfiguration | None = None

    def step(self, setpoints: Sequence[float | None], now_ns: int) -> PlantState:
        arm = self._arm
        goals = arm.goals
        for joint, setpoint in enumerate(setpoints):
            if (setpoint is not None) != self._driven[joint]:
                self._driven[joint] = setpoint is not None
                arm.set_torque(joint, setpoint is not None)
                self._stand = self._stand and setpoint is None
            if setpoint is not None:
                goals[joint] = (setpoint - ZERO_COUNT) * RADIANS_PER_COUNT
        arm.set_goals(goals)
        if self._stand:
            arm.place(self._on_stand)
        elif self._last_ns is not None:
            arm.step((now_ns - self._last_ns) / 1e9)
        self._last_ns = now_ns
        self.publish(now_ns)
        positions = arm.positions / RADIANS_PER_COUNT + ZERO_COUNT
        return PlantState(list(positions), list(arm.velocities / RADIANS_PER_COUNT), list(arm.torques * self._ma_per_nm))

    def publish(self, now_ns: int) -> None:
        """Hand the configuration to the rendering process, where there is one."""
        if self.shared is not None:
            self.shared.write(now_ns, self._arm.configuration)


class SharedConfiguration:
    """The arm's newest configuration for the rendering process: an even count, time in ns and joints; odd while it is
    written. Two processes, so that rendering never holds the interpreter that answers the bus."""

    def __init__(self, context: Any, size: int) -> None:
        self._count = context.RawValue(ctypes.c_uint64, 0)
        self._time_ns = context.RawValue(ctypes.c_int64, 0)
        self._values = context.RawArray(ctypes.c_double, size)

    def write(self, time_ns: int, configuration: NDArray[np.float64]) -> None:
        self._count.value += 1
        self._time_ns.value = time_ns
        self._values[:] = configuration.tolist()
        self._count.value += 1

    def read(self) -> tuple[int, NDArray[np.float64]]:
        """(CLOCK_MONOTONIC ns, configuration), never half of two."""
        while True:
            before = self._count.value
            time_ns, values = self._time_ns.value, np.array(self._values)
            if before % 2 == 0 and before == self._count.value:
                return time_ns, values


def render_frames(process: SimProcess, shared: SharedConfiguration, link: Connection) -> None:
    """The rendering process: both cameras `fps` times a second into the frames files, and the recording.

    Sends "" over `link` after the first pictures, or what is wrong; ends when the other end says so or is gone.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    try:
        arm = SimulatedArm(random_scene(process.scene), SimOptions(process.height, process.width, process.scene, renderer=process.renderer))
        writers = {camera: FrameWriter(path, process.height, process.width) for camera, path in process.cameras().items()}
        recording = Recording(process.record, _RECORD_FPS) if process.record else None
        _show(arm, shared, writers)
    except VlaEdgeError as error:
        link.send(str(error))
        return
    link.send("")
    due_s = record_due_s = time.monotonic()
    while not link.poll(max(0.0, due_s - time.monotonic())):
        _show(arm, shared, writers)
        now_s = time.monotonic()
        if recording is not None and now_s >= record_due_s:
            recording.add(arm.render("viewer", _VIEWER_SIZE))
            record_due_s = max(record_due_s + 1 / _RECORD_FPS, now_s)
        # A picture that comes late is skipped, never made up for.
        due_s = max(due_s + 1 / process.fps, now_s)
    if recording is not None:
        recording.close()
    arm.close()


def _show(arm: SimulatedArm, shared: SharedConfiguration, writers: Mapping[str, FrameWriter]) -> None:
    captured_ns, configuration = shared.read()
    arm.show(configuration)
    for camera, writer in writers.items():
        writer.write(arm.render(camera), captured_ns)


@contextmanager
def rendering(process: SimProcess, plant: SimPlant) -> Iterator[None]:
    """The rendering process for the block. CameraError: it cannot render or record."""
    context = multiprocessing.get_context("spawn")
    plant.shared = SharedConfiguration(context, plant.size)
    plant.publish(time.monotonic_ns())
    here, there = context.Pipe()
    child = context.Process(target=render_frames, args=(process, plant.shared, there), name="frames", daemon=True)
    child.start()
    there.close()
    try:
        fault = here.recv()
    except EOFError:
        fault = "the rendering process ended at once; its message stands above"
    if fault:
        raise CameraError(fault)
    try:
        yield
    finally:
        here.close()
        child.join(timeout=10.0)


def serve(process: SimProcess, commands: bool) -> None:
    """Run until told to stop. Errors: BusError (no pseudo-terminal), CameraError (no rendering, no recording), ConfigError."""
    if not process.run_dir.is_dir():
        raise ConfigError(f"{process.run_dir}: no such folder; make the run folder first")
    arm = SimulatedArm(random_scene(process.scene), SimOptions(renderer=process.renderer))
    plant = SimPlant(arm)
    save_joint_calibration(simulated_calibration(), process.calibration)
    calibration = JointCalibrations(simulated_calibration(), str(process.calibration))
    servos = koch_servos(calibration, [int(count) for count in counts_from_radians(arm.positions)])
    faults = Faults(FaultRates(), process.scene, (5.0, 120.0))
    with rendering(process, plant), open_log(process.log) as log:
        try:
            terminal = Terminal(process.port)
        except OSError as error:
            raise BusError(f"no pseudo-terminal at {process.port}: {error.strerror}; check the folder and /dev/pts") from None
        emulator = Emulator(terminal, EmulatedBus(servos, plant, faults, log), plant, faults)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: emulator.apply(("quit",)))
        realtime = try_realtime()
        frames = {camera: str(path) for camera, path in process.cameras().items()}
        print(json.dumps({"port": str(process.port), "calibration": str(process.calibration), "frames": frames, "realtime": realtime}), flush=True)
        emulator.run([], sys.stdin if commands else None)
    print(json.dumps({"tip_to_cube_m": tip_to_cubes(arm)}), flush=True)


def tip_to_cubes(arm: SimulatedArm) -> dict[str, float]:
    """Distance in metres from the tip to the point above each cube, by colour."""
    return {colour: round(float(np.linalg.norm(arm.tip - arm.scene.target(colour))), 4) for colour in CUBE_COLOURS}


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if not found or not (0 < int(found[1]) <= 1280 and 0 < int(found[2]) <= 960):
        raise ConfigError(f"--size {text!r} is not WIDTHxHEIGHT of at most 1280x960")
    return int(found[1]), int(found[2])


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m vla_edge.robot.sim", description="a simulated Koch arm behind an emulated servo bus")
    parser.add_argument("--run-dir", type=Path, required=True, help="folder for the port, the calibration and the frames")
    parser.add_argument("--scene", type=int, default=0, metavar="SEED", help="where the cubes lie")
    parser.add_argument("--size", default="640x480", metavar="WIDTHxHEIGHT", help="of the cameras' pictures")
    parser.add_argument("--fps", type=float, default=30.0)
    parser.add_argument("--renderer", choices=sorted(BACKENDS), default="egl")
    parser.add_argument("--record", type=Path, metavar="FILE", help="what a person sees, as .mp4 or as a strip of pictures .png")
    parser.add_argument("--log", type=Path, metavar="FILE", help="JSON lines of everything the servos accepted")
    parser.add_argument("--commands", action="store_true", help="take the emulator's events from standard input")
    arguments = parser.parse_args(argv)
    width, height = _size(arguments.size)
    if not 1 <= arguments.fps <= 120:
        raise ConfigError(f"--fps {arguments.fps} is not within 1 to 120")
    process = SimProcess(arguments.run_dir, arguments.scene, height, width, arguments.fps, arguments.renderer, arguments.record, arguments.log)
    serve(process, arguments.commands)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
