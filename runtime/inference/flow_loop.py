"""The flow loop: n Euler steps from noise at t = 1 to actions at t = 0 (POLICY.md §1.12).

`FlowLoop` is the border behind which the Python loop and the native one stand;
both write the same bits. Between steps the caller is asked whether to go on:
an abandoned chunk costs at most one step more, and a hurried one takes the
rest of the way in a single step, which is still Euler (of unequal steps).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vla_edge.engines.ort_native import NativeSession
from vla_edge.errors import BundleError, EngineError, ObservationError
from vla_edge.runtime.inference.graphs import Stages


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
    """noise: float32 [C, A]. steps: between the policy's min_steps and num_steps. signal: int32 [1] that another thread
    may set to a `FlowSignal` at any time; read between steps."""

    steps: int
    noise: NDArray[np.float32]
    inpaint: Inpaint | None = None
    signal: NDArray[np.int32] | None = None


@dataclass(frozen=True, slots=True)
class FlowReport:
    """latent: float32 [C, A], a copy, None when abandoned; step_ms: one entry a step that ran."""

    latent: NDArray[np.float32] | None
    step_ms: tuple[float, ...]


class FlowLoop(Protocol):
    """Runs the two loops of an inference on the buffers of `Stages`."""

    name: str

    def encode(self, prefix: bool) -> tuple[float, float]:
        """Run `prefix` when asked, then `state`. Returns their times in ms (0.0 for a prefix that did not run)."""

    def denoise(self, request: FlowRequest) -> FlowReport:
        """Run the steps on the K/V that `encode` left."""


class PythonLoop:
    """The loop in Python: 'x_next' is copied back to 'x' (6 kB, 0.5 µs), because binding two buffers anew takes 8
    µs."""

    name = "python"

    def __init__(self, stages: Stages, tables: Mapping[str, NDArray[np.float32]]) -> None:
        self._stages = stages
        self._biases = time_biases(stages, tables)

    def encode(self, prefix: bool) -> tuple[float, float]:
        start = time.perf_counter_ns()
        if prefix:
            self._stages.prefix()
        middle = time.perf_counter_ns()
        self._stages.state()
        return (middle - start) / 1e6, (time.perf_counter_ns() - middle) / 1e6

    def denoise(self, request: FlowRequest) -> FlowReport:
        biases = checked_biases(self._biases, request)
        buffers = self._stages.buffers
        x, x_next = buffers["x"], buffers["x_next"]
        x[0] = request.noise
        took: list[float] = []
        for index in range(request.steps):
            signal = FlowSignal.CONTINUE if request.signal is None or not index else FlowSignal(int(request.signal[0]))
            if signal is FlowSignal.ABANDON:
                return FlowReport(None, tuple(took))
            start = time.perf_counter_ns()
            if request.inpaint is not None:
                _tie(x[0], request, 1 - index / request.steps)
            last = signal is FlowSignal.FINISH
            buffers["time_bias"][0] = biases[index]
            buffers["dt"][0] = -(request.steps - index if last else 1) / request.steps
            self._stages.step()
            np.copyto(x, x_next)
            took.append((time.perf_counter_ns() - start) / 1e6)
            if last:
                break
        if request.inpaint is not None:
            _tie(x[0], request, 0.0)
        return FlowReport(x[0].astype(np.float32), tuple(took))


class NativeLoop:
    """The loop in C (runtime/core/policy/flow.c): prefix, state and steps without the interpreter, two x buffers in
    turn."""

    name = "native"

    def __init__(self, stages: Stages, tables: Mapping[str, NDArray[np.float32]]) -> None:
        from vla_edge import _core

        self._biases = time_biases(stages, tables)
        buffers = stages.buffers
        expert = stages.session("expert")
        assert isinstance(expert, NativeSession)
        self._x = (buffers["x"], buffers["x_next"])
        self._odd = expert.rebound({"x": buffers["x_next"], "x_next": buffers["x"]})
        prefix, state = stages.session("prefix"), stages.session("state")
        assert isinstance(prefix, NativeSession) and isinstance(state, NativeSession)
        rows = [(tensor, row) for row, tensor in stages.state_rows]
        self._flow = _core.Flow(
            prefix.binding,
            state.binding,
            expert.binding,
            self._odd.binding,
            rows,
            *self._x,
            buffers["time_bias"],
            buffers["dt"],
        )

    def encode(self, prefix: bool) -> tuple[float, float]:
        try:
            prefix_ns, state_ns = self._flow.encode(prefix)
        except RuntimeError as error:
            raise EngineError(f"graph prefix or state: run failed: {error}") from None
        return prefix_ns / 1e6, state_ns / 1e6

    def denoise(self, request: FlowRequest) -> FlowReport:
        biases = checked_biases(self._biases, request)
        tie = request.inpaint
        noise = np.ascontiguousarray(request.noise, np.float32)
        target, weights = (
            (None, None)
            if tie is None
            else (np.ascontiguousarray(value, np.float32) for value in (tie.target, tie.weights))
        )
        try:
            abandoned, step_ns = self._flow.denoise(noise, biases, request.steps, target, weights, request.signal)
        except RuntimeError as error:
            raise EngineError(f"graph expert: run failed: {error}") from None
        took = tuple(duration / 1e6 for duration in step_ns)
        return FlowReport(None if abandoned else self._x[len(took) % 2][0].copy(), took)


def time_biases(stages: Stages, tables: Mapping[str, NDArray[np.float32]]) -> dict[int, NDArray[np.float32]]:
    """The time half of the action MLP for each step count: float32 [n, E] by n. BundleError: a table is not there."""
    policy = stages.policy
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


def checked_biases(biases: Mapping[int, NDArray[np.float32]], request: FlowRequest) -> NDArray[np.float32]:
    """The bias rows for this request. ObservationError: a step count the bundle was not exported for."""
    if request.steps not in biases:
        raise ObservationError(f"steps is {request.steps}; this bundle takes {min(biases)} to {max(biases)}")
    return biases[request.steps]


def _tie(x: NDArray[np.float32], request: FlowRequest, t: float) -> None:
    tie = request.inpaint
    assert tie is not None
    path = np.float32(t) * request.noise + np.float32(1 - t) * tie.target
    x += tie.weights[:, None] * (path - x)
