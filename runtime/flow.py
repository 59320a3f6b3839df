"""The flow loop: n Euler steps from noise at t = 1 to actions at t = 0 (POLICY.md §1.12).

`FlowLoop` is the border behind which the Python loop and the native one stand;
both write the same bits. Between steps the caller is asked whether to go on:
an abandoned chunk costs at most one step more, and a hurried one takes the
rest of the way in a single step, which is still Euler (of unequal steps).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vla_edge.errors import ObservationError
from vla_edge.runtime.stages import Stages


class FlowSignal(Enum):
    """What to do next: go on, take the rest in one step (anytime), or give the chunk up."""

    CONTINUE = 0
    FINISH = 1
    ABANDON = 2


def always_continue() -> FlowSignal:
    """The signal of a caller that waits for the whole flow."""
    return FlowSignal.CONTINUE


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
    """noise: float32 [C, A]. steps: between the policy's min_steps and num_steps."""

    steps: int
    noise: NDArray[np.float32]
    inpaint: Inpaint | None = None
    signal: Callable[[], FlowSignal] = always_continue


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
    """The loop in Python: 'x_next' is copied back to 'x', 6 kB, because that is cheaper than binding two buffers anew."""

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
            signal = request.signal() if index else FlowSignal.CONTINUE
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


def time_biases(stages: Stages, tables: Mapping[str, NDArray[np.float32]]) -> dict[int, NDArray[np.float32]]:
    """The time half of the action MLP for each step count: float32 [n, E] by n."""
    policy = stages.policy
    return {n: tables[f"time_bias.{n}"] for n in range(policy.min_steps, policy.num_steps + 1)}


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
