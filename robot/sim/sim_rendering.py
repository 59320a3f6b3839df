# SPDX-License-Identifier: Apache-2.0
"""Pictures of the simulated arm, rendered in a process of their own.

Rendering on a CPU takes milliseconds and holds the interpreter for some of
them; the servo bus must be answered within one.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_edge.errors import CameraError, VlaEdgeError
from vla_edge.robot.shared_frames import FrameWriter
from vla_edge.robot.sim.run_video import Recording
from vla_edge.robot.sim.sim_process import SimProcess
from vla_edge.robot.sim.simulated_arm import SimOptions, SimulatedArm

_VIEWER_SIZE = (360, 480)
_RECORD_FPS = 10
RECORDED_S = 10.0
"""For the last pictures of a recording to be written."""


class SharedConfiguration:
    """The arm's newest configuration for the rendering process: an even count, time in ns and joints; odd while it is
    written. Two processes, so that rendering never holds the interpreter that answers the bus."""

    def __init__(self, context: Any, size: int) -> None:
        self._count = context.RawValue(ctypes.c_uint64, 0)
        self._time_ns = context.RawValue(ctypes.c_int64, 0)
        self._values = context.RawArray(ctypes.c_double, size)
        self._armed = context.RawValue(ctypes.c_bool, False)

    @property
    def armed(self) -> bool:
        """Torque has been on: the run has begun, and its recording with it."""
        return bool(self._armed.value)

    def write(self, time_ns: int, configuration: NDArray[np.float64], armed: bool) -> None:
        self._armed.value = armed
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
            time.sleep(0.001)  # its writer may have died while it wrote


def render_frames(process: SimProcess, shared: SharedConfiguration, link: Connection) -> None:
    """The rendering process: both cameras `fps` times a second into the frames files, and the recording.

    Sends "" over `link` after the first pictures, or what is wrong; ends when the other end says so or is gone, and
    sends then whether the recording was written.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    try:
        arm = SimulatedArm(
            process.new_scene(), SimOptions(process.height, process.width, process.scene, renderer=process.renderer)
        )
        writers = {
            camera: FrameWriter(path, process.height, process.width) for camera, path in process.cameras().items()
        }
        recording = Recording(process.record, _RECORD_FPS) if process.record else None
        _show(arm, shared, writers)
        if recording is not None:
            recording.add(arm.render("viewer", _VIEWER_SIZE))
    except VlaEdgeError as error:
        link.send(str(error))
        return
    link.send("")
    try:
        _render_on(process, arm, shared, writers, recording, link)
        fault = ""
    except OSError as error:
        fault = (
            f"{process.record}: the recording stopped: {error.strerror or error}; free some space, or record elsewhere"
        )
    with contextlib.suppress(OSError):  # the one who asked is gone
        link.send(fault)
    arm.close()


def _render_on(
    process: SimProcess,
    arm: SimulatedArm,
    shared: SharedConfiguration,
    writers: Mapping[str, FrameWriter],
    recording: Recording | None,
    link: Connection,
) -> None:
    """Pictures until the other end speaks or is gone. OSError: the recording cannot be written."""
    due_s = record_due_s = time.monotonic()
    while not link.poll(max(0.0, due_s - time.monotonic())):
        _show(arm, shared, writers)
        now_s = time.monotonic()
        if recording is not None and shared.armed and now_s >= record_due_s:
            recording.add(arm.render("viewer", _VIEWER_SIZE))
            record_due_s = max(record_due_s + 1 / _RECORD_FPS, now_s)
        # A picture that comes late is skipped, never made up for.
        due_s = max(due_s + 1 / process.fps, now_s)
    if recording is not None:
        recording.close()


def _show(arm: SimulatedArm, shared: SharedConfiguration, writers: Mapping[str, FrameWriter]) -> None:
    captured_ns, configuration = shared.read()
    arm.show(configuration)
    for camera, writer in writers.items():
        writer.write(arm.render(camera), captured_ns)


@contextmanager
def rendering(process: SimProcess, configuration: NDArray[np.float64]) -> Iterator[SharedConfiguration]:
    """The rendering process for the block, starting with `configuration`; gives what it reads the next ones from.

    CameraError: it cannot render or record, or the recording was not written.
    """
    context = multiprocessing.get_context("spawn")
    shared = SharedConfiguration(context, len(configuration))
    shared.write(time.monotonic_ns(), configuration, armed=False)
    here, there = context.Pipe()
    child = context.Process(target=render_frames, args=(process, shared, there), name="frames", daemon=True)
    child.start()
    there.close()
    try:
        fault = here.recv()
    except EOFError:
        fault = "the rendering process ended at once; its message stands above"
    if fault:
        raise CameraError(fault)
    fault = ""
    try:
        yield shared
    finally:
        with contextlib.suppress(OSError, EOFError):
            here.send("end")
            if here.poll(RECORDED_S):
                fault = here.recv()
        here.close()
        child.join(timeout=RECORDED_S)
        if child.is_alive():
            child.kill()
    if fault:
        raise CameraError(fault)
