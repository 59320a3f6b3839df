# SPDX-License-Identifier: Apache-2.0
"""The C extension: control core, servo bus, native engine sessions. Sources in runtime/core and robot/bus."""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_edge.contract import Chunk
from vla_edge.runtime.control.control_settings import ControlSettings, LoopFiles

class OrtRuntime:
    """ONNX Runtime opened from its shared library: one environment, one thread pool for all sessions.

    RuntimeError: ONNX Runtime's own message. threads: 0 lets it choose. spin: workers wait busily between runs.
    """

    version: str

    def __init__(self, library: str, threads: int = 0, spin: bool = True) -> None: ...
    def session(self, model: bytes, shared: Mapping[str, NDArray[Any]], folder: str | None = None) -> OrtSession:
        """shared: initialisers used where they lie, packed once for all sessions; they must stay unchanged. folder:
        where the external data lies."""

class OrtSession:
    def binding(self) -> OrtBinding: ...

class OrtBinding:
    """Buffers of one session, C-contiguous, held as long as the binding."""

    def bind(self, name: str, array: NDArray[Any], output: bool, /) -> None: ...
    def run(self) -> None: ...

class Flow:
    """The flow loop over bound graphs, without the interpreter (runtime/core/policy/flow.h).

    state_rows: pairs (K or V tensor [heads, rows, width], state row [heads, 1, width]); the row becomes row
    `state_place` of the tensor. target, weights: the step graph's tie, where it has one; time_bias and dt then have a
    row for each of the chunk.
    """

    def __init__(
        self,
        prefix: OrtBinding | None,
        state: OrtBinding,
        step_even: OrtBinding,
        step_odd: OrtBinding,
        state_rows: list[tuple[NDArray[np.float32], NDArray[np.float32]]],
        state_place: int,
        x: NDArray[np.float32],
        x_next: NDArray[np.float32],
        time_bias: NDArray[np.float32],
        dt: NDArray[np.float32],
        target: NDArray[np.float32] | None = None,
        weights: NDArray[np.float32] | None = None,
    ) -> None: ...
    def encode(self, prefix: bool) -> tuple[int, int]:
        """Run [prefix and] state; their nanoseconds."""
    def denoise(
        self,
        noise: NDArray[np.float32],
        bias_rows: NDArray[np.float32],
        moments: NDArray[np.float64],
        steps: int,
        target: NDArray[np.float32] | None = None,
        weights: NDArray[np.float32] | None = None,
        signal: NDArray[np.int32] | None = None,
    ) -> tuple[bool, tuple[int, ...]]:
        """(abandoned, nanoseconds of each step that ran); the result lies in x after an even number of steps."""

def scale_picture(
    image: NDArray[np.uint8],
    pixels: NDArray[np.float32],
    row: NDArray[np.float32],
    first_rows: NDArray[np.int32],
    second_rows: NDArray[np.int32],
    row_weights: NDArray[np.float32],
    first_columns: NDArray[np.int32],
    second_columns: NDArray[np.int32],
    column_weights: NDArray[np.float32],
    /,
) -> None:
    """image [height, width, 3] into pixels [1, 3, h, w] (runtime/core/policy/picture.h). row: scratch of 3 · width."""

class CudaDriver:
    """The CUDA driver, opened from its library; holds the device's primary context. Handles are integers.

    RuntimeError names which of dlopen, a symbol, cuInit, the device count or the context failed.
    """

    version: int
    def __init__(self, library: str = "libcuda.so.1", device: int = 0) -> None: ...
    def begin_capture(self, stream: int, /) -> None:
        """Capture what this thread puts on `stream` from now on."""
    def end_capture(self, stream: int, /) -> int:
        """The executable graph, uploaded to the device."""
    def cancel_capture(self, stream: int, /) -> None:
        """After a failure inside a capture: the stream is usable again."""
    def destroy_graph(self, graph: int, /) -> None: ...
    def launch(self, graph: int, stream: int, /) -> None:
        """Put one run of the graph on `stream`; returns before it ran."""

def cuda_loop_layout(rows: int, columns: int, width: int, /) -> dict[str, int]:
    """The pinned buffers of a `CudaLoop`, in floats (cuda_layout in cuda_loop.h), and "group", the steps a graph."""

class CudaLoop:
    """Prefix, state and flow loop as captured graphs on two sides of buffers (runtime/core/policy/cuda_loop.h).

    streams: (high, low). events: (filled 0, filled 1, idle 0, idle 1, stepped 0, stepped 1). prefix, state, single:
    graphs by side. ends: (begin, end). groups: (side 0 turn 0, side 0 turn 1, side 1 turn 0, side 1 turn 1). shape:
    (rows, columns, width) of `cuda_loop_layout`. chunk_in, step_in, x_out: pinned float32. RuntimeError: the driver's
    failure.
    """

    def __init__(
        self,
        driver: CudaDriver,
        streams: tuple[int, int],
        events: tuple[int, int, int, int, int, int],
        prefix: tuple[int, int],
        state: tuple[int, int],
        ends: tuple[int, int],
        groups: tuple[int, int, int, int],
        single: tuple[int, int],
        shape: tuple[int, int, int],
        chunk_in: NDArray[np.float32],
        step_in: NDArray[np.float32],
        x_out: NDArray[np.float32],
    ) -> None: ...
    def refresh(self, side: int, /) -> None:
        """Start the prefix of `side` on the low-priority stream and return."""
    def wait(self, side: int, /) -> int:
        """Wait for the prefix of `side` that was started last; nanoseconds waited."""
    def encode(self, side: int, prefix: bool, /) -> tuple[int, int]:
        """Run [prefix and] state of `side`; their nanoseconds."""
    def denoise(
        self,
        side: int,
        noise: NDArray[np.float32],
        bias_rows: NDArray[np.float32],
        moments: NDArray[np.float64],
        steps: int,
        target: NDArray[np.float32] | None = None,
        weights: NDArray[np.float32] | None = None,
        signal: NDArray[np.int32] | None = None,
    ) -> tuple[bool, tuple[int, ...]]:
        """(abandoned, nanoseconds of each step that ran); the result lies in x_out. bias_rows: [steps, width];
        moments: [steps, 3], t, dt and rest (flow_moment in flow.h)."""

class RingWriter:
    """Writing end of `chunks.ring`, one at a time; makes the file when it is not there. Control takes the chunks of the
    writer it was armed with. OSError: it cannot be mapped; BlockingIOError: another process writes."""

    def __init__(self, path: str | PathLike[str]) -> None: ...
    def write(self, chunk: Chunk) -> None:
        """actions: float32 [n <= 256, k <= 8], C-contiguous; whether it suits the arm is control's to judge."""
    def announce(self, p99_ns: int, plan_then_move: bool, dropped_through: int = -1) -> None:
        """p99 of an inference (sets age limit and latch time); whether this host waits for rest chunks;
        chunks of observations up to `dropped_through` are void (the scene changed)."""

class Heartbeat:
    """The supervisor's end of the heartbeat that `LoopFiles.beat` names; makes the file. OSError: it cannot be
    mapped."""

    def __init__(self, path: str | PathLike[str]) -> None: ...
    def beat(self) -> None:
        """Still here. Half a second without it, control holds."""

class Guardian:
    """An arm (anything with a `port`) behind a claim: `port` is control's, `watch` is for a child that was forked from
    control, on the same serial port. period_ns: from tick to tick. See runtime/core/control/guardian.h."""

    def __init__(self, arm: object, period_ns: int) -> None: ...
    @property
    def port(self) -> object: ...
    @property
    def watched(self) -> bool:
        """Whether `watch` has looked within the last half second."""

    def watch(self, control: int, priority: int) -> bool:
        """Blocks. True: control (a process id, the parent's) was silent or is dead, and the arm's goals were made where
        it stood. False: there is nothing left to watch."""

    def close(self) -> None:
        """Control ends in order."""

def ring_notice(path: str | PathLike[str], /) -> tuple[int, bool, int, bool] | None:
    """What was last announced in a ring: p99_ns, plan_then_move, dropped_through, ready; None: being written."""

class StateReader:
    """`control.state`. OSError ENOENT: control never ran here; EINVAL: of another build."""

    def __init__(self, path: str | PathLike[str]) -> None: ...
    def read(self) -> dict[str, Any] | None:
        """The newest status, None before the first. Fields: runtime/core/control/status.h; times CLOCK_MONOTONIC ns;
        state, reason, verdict as words; positions in joint units, present and goals in counts;
        reading_tick and reading_ns date positions; chunks and verdicts are counters by name."""

class Pilot:
    """One tick's decision (schedule and guard) with time as an argument: the control loop without bus and clock.

    settings: runtime.settings.ControlSettings. ValueError: a limit the guard cannot keep, (kind, joint) of
    `control_settings.LIMIT_ERRORS`.
    """

    rest_ticks: int
    """ticks in which any hold has come to rest"""
    step_limits: list[tuple[float, float, float, float, float]]
    """per joint: soft minimum and maximum (counts), velocity (counts/tick), acceleration, jerk"""

    def __init__(self, settings: ControlSettings) -> None: ...
    def tick(
        self,
        tick: int,
        now_ns: int,
        positions: Sequence[int] | None,
        chunks: Sequence[Chunk] = (),
        /,
        *,
        command: int = 0,
        p99_ns: int = 0,
        plan_then_move: bool = False,
        dropped_through: int = -1,
        read_result: int = ...,
        reading_ns: int = ...,
        alerts: Sequence[int] = ...,
        watchdog: bool = False,
        unplugged: bool = False,
        unsent: bool = False,
        finding: int = 0,
        finding_joint: int = -1,
        unattended: bool = False,
        damaged: bool = False,
        writer: int = 0,
        torque_failed: bool = False,
        setting_refused: bool = False,
        unguarded: bool = False,
    ) -> dict[str, Any]:
        """positions: counts read in this tick, None: no reading (read_result: a timeout, else a good one).
        reading_ns: their time, else now_ns. command: contract.Command. finding: finding_kind of
        runtime/core/control/health.h, of finding_joint.

        Returns state, reason, joint, latched, answer, action (what was due, joint units), action_sequence,
        action_index, verdict, verdict_joint, verdicts, goals (counts), write (they go to the bus), torque
        (0 keep, 1 on, 2 off), clear_watchdog, reboot (bits of servos), done, chunks (verdict name of each chunk
        offered)."""

class ServoArm:
    """The servo bus and an arm's servos (runtime/core/glue/bind_bus.c); one thread at a time.

    roles: what a register is for (robot/bus/servo_arm.h) → (address, bytes, sign).

    Results are `bus_result` (robot/bus/bus.h) or `arm_result` (robot/bus/arm.h); nothing raises once the port is
    open. Opening raises OSError with ENOENT, EACCES, EBUSY (another process has it), ENOTTY or EINVAL (baud).
    """

    def __init__(
        self,
        path: str,
        baud: int,
        protocol: str,
        ids: Sequence[int],
        roles: dict[str, tuple[int, int, int]],
        velocity_unit: float,
        watchdog_on: int,
        watchdog_tripped: int,
        second_path: str | None = None,
        second: int = -1,
    ) -> None:
        """second: the first servo on the second path's bus; without one there is one bus."""
    @property
    def port(self) -> object: ...
    def ping(self, id: int, timeout_s: float, bus: int = 0, /) -> tuple[int, int, int]: ...
    def sync_read(
        self, ids: Sequence[int], address: int, length: int, timeout_s: float, bus: int = 0, /
    ) -> tuple[int, bytes, bytes]: ...
    def write(self, id: int, address: int, data: bytes, timeout_s: float, bus: int = 0, /) -> int: ...
    def reboot(self, id: int, timeout_s: float, bus: int = 0, /) -> int: ...
    def read_arm(
        self, timeout_s: float, /
    ) -> tuple[int, int, tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]: ...
    def write_goals(self, goals: tuple[int, ...], timeout_s: float, /) -> int: ...
    def set_torque(self, on: bool, timeout_s: float, /) -> int: ...
    def settings(self, settings: Sequence[tuple[int, int, tuple[int | None, ...]]], /) -> None:
        """(address, bytes, a value or None for each servo) by rising address: read back before every torque-on, written
        where they differ."""
    def trouble(self) -> tuple[int, int, int, int]:
        """(joint, register's address, wanted, found) of the last setting that a servo did not take."""
    def close(self) -> None: ...

def control_answer_ns(period_ns: int) -> int:
    """What a tick of that period gives the servos to answer; the goals have the rest of its time on the bus."""

def record_bytes(cells: int, joints: int) -> int:
    """Size of a flight record of an arm with so many joints."""

def control_run(arm: Any, settings: ControlSettings, run: LoopFiles) -> str:
    """The control loop, until it is stopped; the interpreter is released. arm: an object with a `port` capsule.

    Returns "stopped" (at rest, parked where a pose is known), "unplugged" or "interrupted" (a second signal of a kind,
    or SIGINT with `interrupt_ends`).
    OSError: a file of `run` cannot be used. ValueError (kind, joint): a limit the guard cannot keep.
    """

class RecordReader:
    """A flight record (runtime/core/control/record.h). OSError EINVAL: of an unknown version, or damaged."""

    def __init__(self, path: str | PathLike[str]) -> None: ...
    def range(self) -> tuple[int, int]: ...
    def cell(self, index: int) -> tuple[str, dict[str, Any] | None] | None:
        """("tick", fields), ("chunk", fields), ("actions", None), or None: gone or damaged."""
    def header(self) -> dict[str, Any]:
        """version (2: of commit 35ebfe7, its goals are replayed by its guard alone; 3), wall_minus_monotonic_ns,
        period_ns, session, shadow; maps: (scale, offset) of each joint, counts = scale ·
        unit + offset."""
    def replay(self) -> dict[str, int]:
        """ticks, chunks, damaged, differing (ticks whose goals, state or writing differ), first_tick, differing_at."""
