# SPDX-License-Identifier: Apache-2.0
"""A bundle's graphs on buffers, run as its programme says: what a picture, a scene and a moment need.

Every graph is loaded once and bound once; tensors of one name are one buffer, so that K/V cross from one graph to the
next without a copy. What a tensor means stands in docs/design.md.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_edge.bundle import Bundle, TensorSpec
from vla_edge.engines.bindings import LoadedGraph
from vla_edge.engines.engine import Engine
from vla_edge.engines.flow_loop import BesideLoop, FlowGraphs, FlowLoop, FlowReport, FlowRequest, TwoSides, flow_steps
from vla_edge.errors import ConfigError, EngineError
from vla_edge.runtime.inference.prepare import Layout


class BoundGraphs:
    """Graphs and buffers of one bundle on one engine. Not for use from two threads at once.

    buffers: every tensor by name; `mask` is [R] and serves the graphs that take [P] as a view of its front.
    """

    def __init__(self, bundle: Bundle, engine: Engine) -> None:
        manifest = bundle.manifest
        self.policy, self.programme = manifest.policy, manifest.programme
        self._engine = engine
        self.buffers: dict[str, NDArray[Any]] = {}
        self._loaded = {name: engine.load(bundle.graph(name)) for name in self.programme.order()}
        for name, graph in self._loaded.items():
            if name != self.programme.camera:
                self._bind(graph)
        self._camera_rows = self._rows_of_cameras()
        camera = self._loaded[self.programme.camera]
        pixels = self._buffer(camera.inputs["pixels"])
        self._cameras = [camera.fixed({"pixels": pixels, "tokens": rows}) for rows in self._camera_rows]

    def loaded(self, name: str) -> LoadedGraph:
        """One graph by its name."""
        return self._loaded[name]

    def flow(self, tables: Mapping[str, NDArray[np.float32]]) -> FlowGraphs:
        """What a loop of steps runs. BundleError: a time-bias table is missing in `tables`."""
        (scene,), (moment,) = self.programme.scene, self.programme.moment
        prefix, state, step = (self._loaded[name] for name in (scene, moment, self.programme.step))
        rows = [(self.buffers[name], self.buffers[name.removeprefix("state_")]) for name in state.outputs]
        readers = [self._loaded[name] for name in self.programme.correct]
        steps = flow_steps(self.policy, tables)
        return FlowGraphs(prefix, state, step, readers, self.buffers, rows, self.policy.prefix_rows, steps)

    def loop(self, tables: Mapping[str, NDArray[np.float32]]) -> FlowLoop:
        """The engine's loop of steps, or one pass where the programme has none."""
        return self._engine.flow_loop(self.flow(tables)) if self.programme.step else OnePass(self)

    def beside_loop(self, tables: Mapping[str, NDArray[np.float32]]) -> BesideLoop:
        """The engine's loop of steps with two sides of K/V. ConfigError: this backend has none."""
        flow = self.flow(tables)
        loop: Any = self._engine.flow_loop(flow)
        if hasattr(loop, "refresh"):
            made: BesideLoop = loop
            return made
        try:
            other = self._other_side(flow)
        except EngineError as error:
            raise ConfigError(
                f"backend {self._engine.name} cannot refresh a prefix beside the plans ({error}); choose --refresh "
                "front"
            ) from None
        return TwoSides((loop, self._engine.flow_loop(other)), (flow, other))

    def _other_side(self, flow: FlowGraphs) -> FlowGraphs:
        """The same graphs on K/V of their own; the gate's features are one buffer, read before the next refresh."""
        keep = self.features()
        spare = {
            name: self._engine.allocate(spec.shape, spec.dtype)
            for name, spec in flow.prefix.outputs.items()
            if name not in keep
        }
        prefix, state, step = (
            graph.rebound({name: spare[name] for name in (*graph.inputs, *graph.outputs) if name in spare})
            for graph in (flow.prefix, flow.state, flow.step)
        )
        rows = [(self.buffers[name], spare[name.removeprefix("state_")]) for name in flow.state.outputs]
        buffers = {**flow.buffers, **spare}
        return replace(flow, prefix=prefix, state=state, step=step, readers=(), buffers=buffers, state_rows=rows)

    def see(self, slot: int) -> None:
        """Run the camera graph on `buffers["pixels"]` into the rows of camera `slot`."""
        self._cameras[slot]()

    def clear(self, slot: int) -> None:
        """Zero the tokens of an absent camera; its rows are masked, and masked rows must be finite."""
        self._camera_rows[slot].fill(0)

    def set_language(self, ids: NDArray[np.int64]) -> None:
        """Token ids [T] of the next scene."""
        if "token_ids" in self.buffers:
            self.buffers["token_ids"][0] = ids

    def set_layout(self, layout: Layout) -> None:
        """Masks and positions of the next scene and of everything after it."""
        for name, value in (
            ("mask", layout.mask),
            ("positions", layout.positions),
            ("position", layout.state_position),
            ("first_position", layout.first_position),
        ):
            if name in self.buffers:
                self.buffers[name][:] = value

    def correct(self) -> None:
        """`chunk` (queued, normalised) → `corrected`, on the current scene and moment."""
        for name in self.programme.correct:
            self._loaded[name].run()

    def features(self) -> dict[str, NDArray[np.float32]]:
        """Gate features of the last scene, as views of its buffers: `cls` [n, E] and `pooled` [H] where the graph has
        them."""
        made = {name for graph in self.programme.scene for name in self._loaded[graph].outputs}
        return {name: self.buffers[name] for name in ("cls", "pooled") if name in made}

    def _bind(self, graph: LoadedGraph) -> None:
        for name, spec in graph.inputs.items():
            graph.bind_input(name, self._buffer(spec))
        for name, spec in graph.outputs.items():
            graph.bind_output(name, self._buffer(spec))

    def _buffer(self, spec: TensorSpec) -> NDArray[Any]:
        if spec.name not in self.buffers:
            shape = (self.policy.kv_rows,) if spec.name == "mask" else spec.shape
            self.buffers[spec.name] = self._engine.allocate(shape, spec.dtype)
        whole = self.buffers[spec.name]
        return whole[: spec.shape[0]] if spec.name == "mask" else whole

    def _rows_of_cameras(self) -> list[NDArray[Any]]:
        tokens = self.buffers["image_tokens"]
        count = self.policy.tokens_per_image
        return [tokens[:, start : start + count, :] for start in range(0, tokens.shape[1], count)]


class OnePass:
    """`FlowLoop` of a programme without steps: the moment graphs make the chunk in one go, from no noise."""

    name = "one pass"

    def __init__(self, graphs: BoundGraphs) -> None:
        self._scene = [graphs.loaded(name) for name in graphs.programme.scene]
        self._moment = [graphs.loaded(name) for name in graphs.programme.moment]
        self._buffers = graphs.buffers

    def encode(self, prefix: bool) -> tuple[float, float]:
        return (_run(self._scene) if prefix and self._scene else 0.0), 0.0

    def denoise(self, request: FlowRequest) -> FlowReport:
        if request.inpaint is not None:
            raise ConfigError("this policy makes its chunk in one pass, which nothing ties; choose another hand-over")
        took = _run(self._moment)
        return FlowReport(np.array(self._buffers["chunk"][0], np.float32), (took,))


def _run(graphs: list[LoadedGraph]) -> float:
    start = time.perf_counter_ns()
    for graph in graphs:
        graph.run()
    return (time.perf_counter_ns() - start) / 1e6
