# SPDX-License-Identifier: Apache-2.0
"""What a flow loop costs besides its graph: the loop in C against the loop in Python.

    python -m vla_edge.benchmarks.flow_overhead --bundle BUNDLE --out benchmarks/results

Ceiling: the expert graph by itself; a loop that cost nothing would take exactly n times that. Overhead is what a loop
takes besides, per Euler step; the loops run in turn. A call of a graph that does nothing is told apart, from C's
binding and from ONNX Runtime's own Python binding, because it is inside the graph's time.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from vla_edge.benchmarks.bench_report import bench_parser, write_result
from vla_edge.bundle import Bundle, GraphFile, GraphSpec, TensorSpec, open_bundle
from vla_edge.command_line import count, run_command
from vla_edge.engines.engine import EngineOptions, load_engine
from vla_edge.engines.flow_loop import FlowLoop, FlowRequest, PythonLoop
from vla_edge.engines.ort_native import NativeLoop
from vla_edge.errors import ConfigError
from vla_edge.runtime.inference.session import PolicySession, noise_of


def built(bundle: Bundle, threads: int, python_binding: bool) -> tuple[PolicySession, FlowLoop]:
    """A session with its buffers filled as after a prefix, and its loop. `python_binding`: ONNX Runtime's own Python
    binding under the Python loop, which is what runs where the native one is not available."""
    session = PolicySession(
        bundle, load_engine("ort-python" if python_binding else "ort", EngineOptions(threads=threads, spin=False))
    )
    rng = np.random.default_rng(0)
    for name, array in session.graphs.buffers.items():
        if array.dtype == np.float32 and name not in ("mask", "dt", "weights"):
            array[...] = rng.standard_normal(array.shape, np.float32) * 0.1
    session.graphs.buffers["mask"][...] = 1
    session.graphs.buffers["first_position"][...] = session.graphs.buffers["mask"].sum()
    return session, session.loop


class TimedSteps:
    """Keeps how long the graph itself took in a Python loop's steps, ns."""

    def __init__(self, session: PolicySession) -> None:
        self.ns = 0
        expert = session.graphs.loaded("expert")
        self._step = expert.run
        expert.run = self  # type: ignore[method-assign]

    def __call__(self) -> None:
        start = time.perf_counter_ns()
        self._step()
        self.ns += time.perf_counter_ns() - start


def overheads(bundle: Bundle, threads: int, rounds: int) -> dict[str, dict[str, float]]:
    """µs a step that each loop takes besides running its graph: wall time less the graph's own, in the same run, so
    that a busy neighbour, who lengthens the graph most of all, is not counted."""
    policy = bundle.manifest.policy
    steps = policy.num_steps
    request = FlowRequest(steps, noise_of(0, 0, (policy.chunk_size, policy.max_action_dim)))
    native, native_loop = built(bundle, threads, python_binding=False)
    if not isinstance(native_loop, NativeLoop):
        raise ConfigError("the native flow loop is not available here; build the C core to compare with it")
    python, python_loop = built(bundle, threads, python_binding=True)
    own = PythonLoop(native.graphs.flow(native.preparer.tables))
    timed = {"Python loop, native sessions": TimedSteps(native), "Python loop, Python binding": TimedSteps(python)}
    loops: dict[str, FlowLoop] = {
        "native loop": native_loop,
        "Python loop, native sessions": own,
        "Python loop, Python binding": python_loop,
    }
    left: dict[str, list[float]] = {name: [] for name in loops}
    graph: dict[str, list[float]] = {name: [] for name in loops}
    for number in range(rounds + 5):
        for name, loop in loops.items():
            if name in timed:
                timed[name].ns = 0
            start = time.perf_counter_ns()
            report = loop.denoise(request)
            wall = time.perf_counter_ns() - start
            inner = timed[name].ns if name in timed else sum(report.step_ms) * 1e6
            if number >= 5:  # warm-up
                left[name].append((wall - inner) / 1e3 / steps)
                graph[name].append(inner / 1e3 / steps)
    return {
        name: {
            "overhead_us_p50": float(np.median(left[name])),
            "overhead_us_p99": float(np.percentile(left[name], 99)),
            "graph_us_p50": float(np.median(graph[name])),
        }
        for name in loops
    }


def call_us(calls: int) -> dict[str, float]:
    """µs of running a graph that does next to nothing, from Python: the native binding against ONNX Runtime's own."""
    taken = {}
    spec = [TensorSpec(name, (2, 2), "float32") for name in "xy"]
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "neg", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    file = GraphFile(
        "neg", GraphSpec("neg.onnx", (), (spec[0],), (spec[1],)), Path("neg.onnx"), model.SerializeToString(), {}
    )
    for name in ("ort", "ort-python"):
        engine = load_engine(name, EngineOptions(threads=1))
        session = engine.load(file)
        session.bind_input("x", engine.allocate((2, 2), "float32"))
        session.bind_output("y", engine.allocate((2, 2), "float32"))
        took = []
        for _ in range(calls):
            start = time.perf_counter_ns()
            session.run()
            took.append((time.perf_counter_ns() - start) / 1e3)
        taken[name] = float(np.median(took))
    return taken


def main(argv: Sequence[str]) -> int:
    parser = bench_parser("flow_overhead", "per-step overhead of the flow loops", "whose flow loop is timed")
    parser.add_argument("--rounds", type=count, default=200)
    options = parser.parse_args(argv)
    bundle = open_bundle(options.bundle)
    steps = bundle.manifest.policy.num_steps
    line: dict[str, Any] = {"bundle": bundle.digest, "steps": steps, "threads": options.threads}
    line["loops"], line["call_us"] = overheads(bundle, options.threads, options.rounds), call_us(5000)
    print(f"ceiling: the graph alone, {line['loops']['native loop']['graph_us_p50']:.1f} µs a step")
    for name, row in line["loops"].items():
        print(f"{name:<30} overhead {row['overhead_us_p50']:6.2f} µs a step (p99 {row['overhead_us_p99']:.1f})")
    print(
        f"an empty graph from Python: {line['call_us']['ort']:.1f} µs natively, {line['call_us']['ort-python']:.1f} "
        "µs through the Python binding"
    )
    write_result(options.out, "flow_overhead", line)
    print(json.dumps(line))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
