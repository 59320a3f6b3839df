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
class FlowGraphs:
    """What a flow loop runs: loaded graphs on buffers that all of them share.

    prefix fills the K/V from the scene, state adds the state token's row, step goes one Euler step; readers are the
    other graphs that read the K/V. buffers: every tensor by name. state_rows: (row [KV, 1, D], tensor [KV, P+1, D]) for
    every K/V tensor that takes the state token's row at its end. biases: time half of the action MLP, float32 [n, E] by
    step count n.
    """

    prefix: LoadedGraph
    state: LoadedGraph
    step: LoadedGraph
    readers: Sequence[LoadedGraph]
    buffers: Mapping[str, NDArray[Any]]
    state_rows: Sequence[tuple[NDArray[Any], NDArray[Any]]]
    biases: Mapping[int, NDArray[np.float32]]

    def checked_biases(self, request: FlowRequest) -> NDArray[np.float32]:
        """The bias rows for this request. ObservationError: a step count the bundle was not exported for."""
        if request.steps not in self.biases:
            raise ObservationError(
                f"steps is {request.steps}; this bundle takes {min(self.biases)} to {max(self.biases)}"
            )
        return self.biases[request.steps]


class FlowLoop(Protocol):
    """Runs the two loops of an inference on the buffers of its `FlowGraphs`."""

    name: str

    def encode(self, prefix: bool) -> tuple[float, float]:
        """Run `prefix` when asked, then `state`. Returns their times in ms (0.0 for a prefix that did not run)."""

    def denoise(self, request: FlowRequest) -> FlowReport:
        """Run the steps on the K/V that `encode` left."""


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
            np.copyto(tensor[:, -1:, :], row)
        end = time.perf_counter_ns()
        return (middle - start) / 1e6, (end - middle) / 1e6

    def denoise(self, request: FlowRequest) -> FlowReport:
        biases = self._graphs.checked_biases(request)
        buffers, step = self._graphs.buffers, self._graphs.step
        x, x_next = buffers["x"], buffers["x_next"]
        x[0] = request.noise
        took: list[float] = []
        for index in range(request.steps):
            signal = FlowSignal.CONTINUE if request.signal is None or not index else FlowSignal(int(request.signal[0]))
            if signal is FlowSignal.ABANDON:
                return FlowReport(None, tuple(took))
            start = time.perf_counter_ns()
            if request.inpaint is not None:
                _tie(x[0], request.noise, request.inpaint, 1 - index / request.steps)
            last = signal is FlowSignal.FINISH
            buffers["time_bias"][0] = biases[index]
            buffers["dt"][0] = -(request.steps - index if last else 1) / request.steps
            step.run()
            np.copyto(x, x_next)
            took.append((time.perf_counter_ns() - start) / 1e6)
            if last:
                break
        if request.inpaint is not None:
            _tie(x[0], request.noise, request.inpaint, 0.0)
        return FlowReport(x[0].astype(np.float32), tuple(took))


def time_biases(policy: PolicySpec, tables: Mapping[str, NDArray[np.float32]]) -> dict[int, NDArray[np.float32]]:
    """The time half of the action MLP for each step count: float32 [n, E] by n. BundleError: a table is not there."""
    biases = {}
    for n in range(policy.min_steps, policy.num_steps + 1):
        table = tables.get(f"time_bias.{n}")
        if table is None or table.shape != (n, policy.expert_width):
            raise BundleError(
                f"tables.safetensors: time_bias.{n} is {'missing' if table is None else list(table.shape)}, must be "
                f"[{n}, {policy.expert_width}]; export the bundle again"
            )
        biases[n] = np.ascontiguousarray(table, np.float32)
    return biases


def _tie(x: NDArray[np.float32], noise: NDArray[np.float32], tie: Inpaint, t: float) -> None:
    path = np.float32(t) * noise + np.float32(1 - t) * tie.target
    x += tie.weights[:, None] * (path - x)
