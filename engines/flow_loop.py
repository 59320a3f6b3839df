# SPDX-License-Identifier: Apache-2.0
"""The flow loop: n Euler steps from noise at t = 1 to actions at t = 0 (docs/policy.md, the flow).

`FlowLoop` is the border behind which the loops of the engines stand; all write the same bits on the same kernels.
Between steps the caller is asked whether to go on: an abandoned chunk costs at most one step more, and a hurried one
takes the rest of the way in a single step, which is still Euler (of unequal steps).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vla_edge.bundle import PolicySpec
from vla_edge.engines.bindings import LoadedGraph
from vla_edge.errors import BundleError, ObservationError

TIE = "target"
"""The input of a step graph that draws x to the inpaint's path itself."""

TIMES = "flow_times."
"""The tables with the flow times between unequal steps, by the steps' count."""


class FlowSignal(IntEnum):
    """What to do next: go on, take the rest in one step (anytime), or give the chunk up. The same numbers as in
    flow.h."""

    CONTINUE = 0
    FINISH = 1
    ABANDON = 2


@dataclass(frozen=True, slots=True)
class Inpaint:
    """Ties the new chunk to what will be executed before it arrives.

    target: float32 [C, A] normalised flow values of the executing chunk, row i due when row i of the new chunk is;
    weights: float32 [C], 1 frozen, 0 free, between them soft. At flow time t a tied row is drawn to
    t·noise + (1 − t)·target, the path that ends in the target.
    """

    target: NDArray[np.float32]
    weights: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class FlowRequest:
    """noise: float32 [C, A], empty for a policy of one pass. steps: between the policy's min_steps and num_steps.
    signal: int32 [1] that another thread may set to a `FlowSignal` at any time; read between steps."""

    steps: int
    noise: NDArray[np.float32]
    inpaint: Inpaint | None = None
    signal: NDArray[np.int32] | None = None


@dataclass(frozen=True, slots=True)
class FlowReport:
    """latent: float32 [C, A], a copy, None when abandoned; step_ms: one entry a step that ran."""

    latent: NDArray[np.float32] | None
    step_ms: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class FlowSteps:
    """What the n steps of one count go by. biases: time half of the action MLP, float32 [n, E]. moments: float64
    [n, 3], for each step the flow time it begins at, how far it goes, and how far the rest of the way is
    (`flow_moment` in flow.h)."""

    biases: NDArray[np.float32]
    moments: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class FlowGraphs:
    """What a flow loop runs: loaded graphs on buffers that all of them share.

    prefix fills the K/V from the scene, state adds the state token's row, step goes one Euler step; readers are the
    other graphs that read the K/V. buffers: every tensor by name. state_rows: (row [KV, 1, D], tensor [KV, R, D]) for
    every K/V tensor that takes the state token's row, in place `state_place`. steps: by their count.
    """

    prefix: LoadedGraph
    state: LoadedGraph
    step: LoadedGraph
    readers: Sequence[LoadedGraph]
    buffers: Mapping[str, NDArray[Any]]
    state_rows: Sequence[tuple[NDArray[Any], NDArray[Any]]]
    state_place: int
    steps: Mapping[int, FlowSteps]

    @property
    def ties(self) -> bool:
        """Whether the step graph ties x itself."""
        return TIE in self.step.inputs

    def steps_of(self, request: FlowRequest) -> FlowSteps:
        """The steps of this request. ObservationError: a step count the bundle was not exported for."""
        if request.steps not in self.steps:
            raise ObservationError(
                f"steps is {request.steps}; this bundle takes {min(self.steps)} to {max(self.steps)}"
            )
        return self.steps[request.steps]


class FlowLoop(Protocol):
    """Runs the two loops of an inference on the buffers of its `FlowGraphs`."""

    name: str

    def encode(self, prefix: bool) -> tuple[float, float]:
        """Run `prefix` when asked, then `state`. Returns their times in ms (0.0 for a prefix that did not run)."""

    def denoise(self, request: FlowRequest) -> FlowReport:
        """Run the steps on the K/V that `encode` left."""


class BesideLoop(FlowLoop, Protocol):
    """A loop whose prefix can be made anew while it runs on the last one."""

    def refresh(self) -> float:
        """Run the prefix into the K/V that are not in use, on any thread; its ms. `encode(True)` never runs beside."""

    def adopt(self) -> None:
        """Go over to what `refresh` made."""


class TwoSides:
    """`BesideLoop` of two loops of one kind, on K/V of their own and everything else in common."""

    def __init__(self, loops: tuple[FlowLoop, FlowLoop], graphs: tuple[FlowGraphs, FlowGraphs]) -> None:
        self.name = loops[0].name
        self._loops, self._graphs, self._side = loops, graphs, 0

    def encode(self, prefix: bool) -> tuple[float, float]:
        return self._loops[self._side].encode(prefix)

    def denoise(self, request: FlowRequest) -> FlowReport:
        return self._loops[self._side].denoise(request)

    def refresh(self) -> float:
        start = time.perf_counter_ns()
        self._graphs[1 - self._side].prefix.run()
        return (time.perf_counter_ns() - start) / 1e6

    def adopt(self) -> None:
        self._side = 1 - self._side


class PythonLoop:
    """The loop in Python: 'x_next' is copied back to 'x' (6 kB, 0.5 µs), because binding two buffers anew takes 8
    µs."""

    name = "python"

    def __init__(self, graphs: FlowGraphs) -> None:
        self._graphs = graphs

    def encode(self, prefix: bool) -> tuple[float, float]:
        start = time.perf_counter_ns()
        if prefix:
            self._graphs.prefix.run()
        middle = time.perf_counter_ns()
        self._graphs.state.run()
        for row, tensor in self._graphs.state_rows:
            np.copyto(tensor[:, self._graphs.state_place, :], row[:, 0, :])
        end = time.perf_counter_ns()
        return (middle - start) / 1e6 if prefix else 0.0, (end - middle) / 1e6

    def denoise(self, request: FlowRequest) -> FlowReport:
        steps, tie, ties = self._graphs.steps_of(request), request.inpaint, self._graphs.ties
        buffers, step = self._graphs.buffers, self._graphs.step
        x, x_next = buffers["x"], buffers["x_next"]
        x[0] = request.noise
        if ties:
            buffers["weights"][:, 0] = 0 if tie is None else tie.weights
        took: list[float] = []
        for index in range(request.steps):
            signal = FlowSignal.CONTINUE if request.signal is None or not index else FlowSignal(int(request.signal[0]))
            if signal is FlowSignal.ABANDON:
                return FlowReport(None, tuple(took))
            start = time.perf_counter_ns()
            t, dt, rest = steps.moments[index]
            if tie is not None and ties:
                buffers[TIE][0] = _path(request.noise, tie, t)
            elif tie is not None:
                _tie(x[0], request.noise, tie, t)
            last = signal is FlowSignal.FINISH
            buffers["time_bias"][:] = steps.biases[index]
            buffers["dt"][...] = rest if last else dt
            step.run()
            np.copyto(x, x_next)
            took.append((time.perf_counter_ns() - start) / 1e6)
            if last:
                break
        if tie is not None:
            _tie(x[0], request.noise, tie, 0.0)
        return FlowReport(x[0].astype(np.float32), tuple(took))


def flow_steps(policy: PolicySpec, tables: Mapping[str, NDArray[np.float32]]) -> dict[int, FlowSteps]:
    """The steps for each count n: `time_bias.n` [n, E], and where the steps are unequal `flow_times.n` [n + 1], the
    flow times from 1 down to 0 between them. BundleError: a table is not there, or no such times."""
    made = {}
    for n in range(policy.min_steps, policy.num_steps + 1):
        table = tables.get(f"time_bias.{n}")
        if table is None or table.shape != (n, policy.expert_width):
            raise BundleError(
                f"tables.safetensors: time_bias.{n} is {'missing' if table is None else list(table.shape)}, must be "
                f"[{n}, {policy.expert_width}]; export the bundle again"
            )
        made[n] = FlowSteps(np.ascontiguousarray(table, np.float32), _moments(n, tables.get(f"{TIMES}{n}")))
    return made


def _moments(n: int, times: NDArray[np.float32] | None) -> NDArray[np.float64]:
    if times is None:
        return np.array([(1 - k / n, -1 / n, -(n - k) / n) for k in range(n)])
    falling = times.shape == (n + 1,) and times[0] == 1 and times[-1] == 0 and bool((np.diff(times) < 0).all())
    if not falling:
        raise BundleError(
            f"tables.safetensors: flow_times.{n} must be {n + 1} numbers from 1 down to 0; export the bundle again"
        )
    exact = times.astype(np.float64)
    return np.stack((exact[:-1], np.diff(exact), -exact[:-1]), axis=1)


def _path(noise: NDArray[np.float32], tie: Inpaint, t: float) -> NDArray[np.float32]:
    return np.float32(t) * noise + np.float32(1 - t) * tie.target


def _tie(x: NDArray[np.float32], noise: NDArray[np.float32], tie: Inpaint, t: float) -> None:
    x += tie.weights[:, None] * (_path(noise, tie, t) - x)
