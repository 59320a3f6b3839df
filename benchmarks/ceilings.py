# SPDX-License-Identifier: Apache-2.0
"""What this machine can do at best: matrix products in float32 and INT8, and reading memory.

The ceiling of a type is the best of several libraries and shapes that the
policy has; a graph's fraction of it says how much room is left.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from vla_edge.bundle import GraphFile, GraphSpec, TensorSpec
from vla_edge.calibration.precision.int8 import Rewriter, Span, Step
from vla_edge.calibration.precision.linear import linear_maps
from vla_edge.calibration.precision.variant import MemorySink
from vla_edge.engines.dialect import Treatment
from vla_edge.engines.engine import Engine, EngineOptions, backend_of, load_engine
from vla_edge.errors import EngineError

SHAPES = ((1024, 768, 3072), (1024, 3072, 768), (1024, 1024, 1024))
"""rows, inner, outer: the vision tower's MLP and a square."""

TRIES = 12
MEMORY_BYTES = 256 << 20


@dataclass(frozen=True)
class Ceilings:
    """float32 and int8: 10⁹ operations a second (a multiply-add is two); memory: 10⁹ bytes read a second. `found`:
    every measurement by name."""

    float32: float
    int8: float
    memory: float
    found: dict[str, float]


def measure_ceilings(threads: int) -> Ceilings:
    """Takes some seconds."""
    found: dict[str, float] = {}
    for name, engine in _engines(threads):
        dialect = backend_of(name).dialect
        assert dialect is not None
        for treatment in (Treatment.FLOAT32, dialect.int8[0]):
            label = "float32" if treatment is Treatment.FLOAT32 else treatment.value.replace("-", " ")
            for shape in SHAPES:
                found[f"{name} {label} {'×'.join(map(str, shape))}"] = round(_product(engine, shape, treatment), 1)
    generator = np.random.default_rng(0)
    for rows, inner, outer in SHAPES:
        left, right = (generator.standard_normal(shape, np.float32) for shape in ((rows, inner), (inner, outer)))
        found[f"numpy float32 {rows}×{inner}×{outer}"] = round(
            2e-9 * rows * inner * outer / _best(lambda left=left, right=right: left @ right),  # type: ignore[misc]
            1,
        )
    block = np.ones(MEMORY_BYTES // 8, np.float64)
    memory = MEMORY_BYTES / _best(block.sum) / 1e9
    best = {kind: max(value for name, value in found.items() if kind in name) for kind in ("float32", "int8")}
    return Ceilings(best["float32"], best["int8"], round(memory, 1), found)


def _engines(threads: int) -> Iterator[tuple[str, Engine]]:
    for name in ("ort-python", "openvino"):
        try:
            yield name, load_engine(name, EngineOptions(threads=threads))
        except EngineError:
            continue


def _product(engine: Engine, shape: tuple[int, int, int], treatment: Treatment) -> float:
    """10⁹ operations a second of one product with constant weights."""
    rows, inner, outer = shape
    weight = np.random.default_rng(0).standard_normal((inner, outer), np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Identity", ["x"], ["entered"], "enter"),
            helper.make_node("MatMul", ["entered", "w"], ["product"], "product"),
            helper.make_node("Identity", ["product"], ["y"], "leave"),
        ],
        "ceiling",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (rows, inner))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (rows, outer))],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    maps = {item.node: item for item in linear_maps(model)}
    step = Step(treatment, Span(-4.0, 4.0))
    sink = MemorySink(bytearray())
    rewritten = Rewriter(model, {"w": weight}, sink).rewrite(maps, dict.fromkeys(maps, step))
    spec = GraphSpec(
        "ceiling.onnx", (), (TensorSpec("x", (rows, inner), "float32"),), (TensorSpec("y", (rows, outer), "float32"),)
    )
    weights = {"candidate.bin": memoryview(sink.data)} if sink.data else {}
    session = engine.load(GraphFile("ceiling", spec, Path("ceiling.onnx"), rewritten.SerializeToString(), weights))
    value, result = engine.allocate((rows, inner), "float32"), engine.allocate((rows, outer), "float32")
    value[...] = np.random.default_rng(1).standard_normal((rows, inner), np.float32)
    session.bind_input("x", value)
    session.bind_output("y", result)
    return 2e-9 * rows * inner * outer / _best(session.run)


def _best(run: Callable[[], object]) -> float:
    """Shortest of some runs, seconds."""
    taken = []
    for _ in range(TRIES):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return min(taken[2:])
