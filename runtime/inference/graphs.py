"""The bundle's graphs as stages on fixed buffers: vision(slot), prefix(), state(), step(), delta().

Every session is created once and bound once; tensors of one name are one
buffer, so that K/V cross from `prefix` to `state` and `expert` without a copy.
Only the state token's row is copied in, KV·D numbers a tensor. What a tensor
means stands in docs/design.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_edge.bundle import Bundle, TensorSpec
from vla_edge.engines.bindings import LoadedGraph
from vla_edge.engines.engine import Engine
from vla_edge.engines.flow_loop import FlowGraphs, time_biases
from vla_edge.errors import BundleError
from vla_edge.runtime.inference.prepare import Layout

REQUIRED = ("vision", "prefix", "state", "expert")
DELTA = ("delta_kv", "delta")
"""`delta_kv` is missing where no expert layer cross-attends."""


class Stages:
    """Sessions and buffers of one bundle on one engine. Not for use from two threads at once.

    names: the graphs that are loaded. buffers: every tensor by name; `mask` is [P+1] and serves the graphs that take
    [P] as a view of its front. state_rows: (row [KV, 1, D], tensor [KV, P+1, D]) for every K/V tensor that takes the
    state token's row at its end.
    """

    def __init__(self, bundle: Bundle, engine: Engine) -> None:
        manifest = bundle.manifest
        self.policy = manifest.policy
        self._engine = engine
        missing = [name for name in REQUIRED if name not in manifest.graphs]
        if missing:
            raise BundleError(f"{bundle.path}: no graph {missing[0]}; export the bundle again")
        self.has_delta = "delta" in manifest.graphs
        self.buffers: dict[str, NDArray[Any]] = {}
        self.buffers["mask"] = engine.allocate((self.policy.prefix_rows + 1,), "float32")
        self.names = REQUIRED + tuple(name for name in DELTA if name in manifest.graphs)
        self._loaded = {name: engine.load(bundle.graph(name)) for name in self.names}
        for name, session in self._loaded.items():
            if name != "vision":
                self._bind(session)
        self._vision_rows = self._bind_vision()
        state_outputs = self._loaded["state"].outputs
        self.state_rows = [(self.buffers[name], self.buffers[name.removeprefix("state_")]) for name in state_outputs]

    def loaded(self, name: str) -> LoadedGraph:
        """One graph by its name."""
        return self._loaded[name]

    def flow(self, tables: Mapping[str, NDArray[np.float32]]) -> FlowGraphs:
        """What a flow loop runs. BundleError: a time-bias table is missing in `tables`."""
        prefix, state, step = (self._loaded[name] for name in ("prefix", "state", "expert"))
        readers = [self._loaded[name] for name in DELTA if name in self._loaded]
        return FlowGraphs(prefix, state, step, readers, self.buffers, self.state_rows, time_biases(self.policy, tables))

    def vision(self, slot: int) -> None:
        """Run `vision` on `buffers["pixels"]` into the rows of camera `slot`."""
        session = self._loaded["vision"]
        session.bind_output("tokens", self._vision_rows[slot])
        session.run()

    def clear(self, slot: int) -> None:
        """Zero the tokens of an absent camera; its rows are masked, and masked rows must be finite."""
        self._vision_rows[slot].fill(0)

    def set_language(self, ids: NDArray[np.int64]) -> None:
        """Token ids [T] of the next `prefix`."""
        self.buffers["token_ids"][0] = ids

    def set_layout(self, layout: Layout) -> None:
        """Masks and positions of the next `prefix` and of everything after it."""
        self.buffers["mask"][:] = layout.mask
        self.buffers["positions"][:] = layout.positions
        self.buffers["position"][:] = layout.state_position
        self.buffers["first_position"][:] = layout.first_position

    def delta(self) -> None:
        """`chunk` (queued, normalised) → `corrected`, on the current prefix and state."""
        if not self.has_delta:
            raise BundleError("the bundle has no delta expert; choose cache policy always, guard or cls")
        if "delta_kv" in self._loaded:
            self._loaded["delta_kv"].run()
        self._loaded["delta"].run()

    def features(self) -> dict[str, NDArray[np.float32]]:
        """Gate features of the last `prefix`, as views of its buffers: `cls` [n, E] and `pooled` [H] where the graph
        has them."""
        return {name: self.buffers[name] for name in ("cls", "pooled") if name in self._loaded["prefix"].outputs}

    def _bind(self, session: LoadedGraph) -> None:
        for name, spec in session.inputs.items():
            session.bind_input(name, self._buffer(spec))
        for name, spec in session.outputs.items():
            session.bind_output(name, self._buffer(spec))

    def _buffer(self, spec: TensorSpec) -> NDArray[Any]:
        if spec.name == "mask":
            return self.buffers["mask"][: spec.shape[0]]
        if spec.name not in self.buffers:
            self.buffers[spec.name] = self._engine.allocate(spec.shape, spec.dtype)
        return self.buffers[spec.name]

    def _bind_vision(self) -> list[NDArray[Any]]:
        session = self._loaded["vision"]
        session.bind_input("pixels", self._buffer(session.inputs["pixels"]))
        tokens = self.buffers["image_tokens"]
        count = self.policy.tokens_per_image
        return [tokens[:, start : start + count, :] for start in range(0, tokens.shape[1], count)]
