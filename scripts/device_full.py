# SPDX-License-Identifier: Apache-2.0
"""What a full-size policy takes on an NVIDIA GPU: the captured loop's cases, and torch's own beside them.

A part of scripts/device_run.py, which says on what machine it runs.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

DEVICE = "cuda"

Tell = Callable[..., None]
"""Told one line of results, by name."""
Cases = dict[str, Callable[[], dict[str, float]]]
"""Milliseconds of each part, by case."""


def built(path: Path, compiler: Any) -> tuple[Any, Any]:
    """The bundle, with engine files for this GPU made now, and what makes an engine for it."""
    from vla_edge.bundle import open_bundle
    from vla_edge.engines.tensorrt.cuda import open_cuda
    from vla_edge.engines.tensorrt.engine_build import BuildOptions, build_engines
    from vla_edge.engines.tensorrt.trt_engine import TrtEngine

    bundle, cuda = open_bundle(path), open_cuda()
    build_engines(bundle, BuildOptions(force=True), lambda step: None, cuda, compiler)
    return bundle, functools.partial(TrtEngine, compiler.name, cuda, compiler)


def opened(path: Path, compiler: Any) -> tuple[Any, dict[str, float]]:
    """A session of the bundle on this GPU with engine files made now, and how long both took."""
    from vla_edge.runtime.inference.session import PolicySession, SessionOptions

    start = time.perf_counter()
    bundle, engine = built(path, compiler)
    made = time.perf_counter()
    session = PolicySession(bundle, engine(), SessionOptions(seed=3))
    return session, {"build_s": round(made - start, 2), "ready_s": round(time.perf_counter() - made, 2)}


def request_of(session: Any, seed: int) -> Any:
    import numpy as np

    from vla_edge.contract import Frame, JointReading, Observation
    from vla_edge.runtime.inference.session import InferenceRequest

    generator, manifest = np.random.default_rng(seed), session.bundle.manifest
    frames = {
        item.name: Frame(item.name, generator.integers(0, 256, (item.height, item.width, 3), dtype=np.uint8), 0, 0)
        for item in manifest.cameras
    }
    state = generator.normal(0, 10, manifest.policy.state_dim).astype(np.float32)
    observation = Observation(0, frames, JointReading(0, 0, state), "Stack the blocks")
    return InferenceRequest(observation, seed, signal=np.zeros(1, np.int32))


class Ours:
    """Cases of the captured loop; each call returns the milliseconds of its parts."""

    def __init__(self, path: Path, compiler: Any, tell: Tell) -> None:
        import numpy as np

        from vla_edge.engines.flow_loop import FlowRequest, Inpaint, PythonLoop

        self.session, took = opened(path, compiler)
        tell(bundle=path.name, **took, memory_used_mb=used_mb())
        policy = self.session.policy
        shape = (policy.chunk_size, policy.max_action_dim)
        noise = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
        tie = Inpaint(noise * 0.5, np.linspace(1, 0, shape[0], dtype=np.float32))
        signal = np.zeros(1, np.int32)
        self.flows = {n: FlowRequest(n, noise, None, signal) for n in (1, 2, policy.num_steps)}
        self.robot = self.flows[policy.num_steps]
        self.tied = FlowRequest(policy.num_steps, noise, tie, signal)
        self.python = PythonLoop(self.session.graphs.flow(self.session.preparer.tables))
        self.round = 0
        self.session.infer(request_of(self.session, 0))

    def fresh(self) -> dict[str, float]:
        self.round += 1
        timings = self.session.infer(request_of(self.session, self.round)).timings
        parts = {name: getattr(timings, name) for name in ("prepare", "vision", "prefix", "state", "flow", "total")}
        return {**parts, "without preparation": timings.total - timings.prepare}

    def cached(self) -> dict[str, float]:
        """What the robot runs on a cached prefix: the state's row and the steps, with a signal."""
        start = time.perf_counter()
        self.session.loop.encode(False)
        self.session.loop.denoise(self.robot)
        return {"total": 1e3 * (time.perf_counter() - start)}

    def inpaint(self) -> dict[str, float]:
        start = time.perf_counter()
        self.session.loop.encode(False)
        self.session.loop.denoise(self.tied)
        return {"total": 1e3 * (time.perf_counter() - start)}

    def steps(self) -> dict[str, float]:
        made = {}
        for count, flow in self.flows.items():
            start = time.perf_counter()
            self.session.loop.denoise(flow)
            made[f"{count} steps"] = 1e3 * (time.perf_counter() - start)
        return made

    def beside_refresh(self) -> dict[str, float]:
        """The cached path while the other side's prefix is being refreshed."""
        loop = self.session.loop
        loop.start_refresh()
        made = self.cached()
        loop.adopt()
        loop.encode(False)
        return made

    def uncaptured(self) -> dict[str, float]:
        start = time.perf_counter()
        self.python.denoise(self.robot)
        return {"total": 1e3 * (time.perf_counter() - start)}

    def cases(self) -> Cases:
        return {
            "fresh": self.fresh, "cached": self.cached, "cached, inpaint": self.inpaint, "steps": self.steps,
            "cached, beside a refresh": self.beside_refresh,
        }  # fmt: skip


class Torch:
    """The policy in torch on the GPU in half precision (norms, softmax and the update in float32), inputs already
    there: fresh in LeRobot's order, cached as ours."""

    def __init__(self, checkpoint: Path, session: Any) -> None:
        import torch

        from vla_edge.policies.features import STATE
        from vla_edge.policies.smolvla.flow import Inputs
        from vla_edge.policies.smolvla.policy import SmolVLAPolicy
        from vla_edge.policies.smolvla.vision import Embeddings

        self.torch = torch
        policy = SmolVLAPolicy.from_pretrained(checkpoint)
        self.model = policy.model.to(DEVICE).half()
        self.model.action_out_proj.float()
        for module in self.model.modules():
            if isinstance(module, Embeddings):  # its numbers come from the host, which no CUDA graph can hold
                ids = functools.cache(lambda rows, columns, make=module.position_ids: make(rows, columns).to(DEVICE))
                module.__dict__["position_ids"] = ids
        self.count = policy.config.num_steps
        observation = request_of(session, 0).observation
        raw = {camera.source: observation.frames[camera.name].image for camera in policy.settings.cameras}
        given = policy.prepare(
            policy.preprocess({**raw, STATE: observation.joints.positions, "task": observation.task})
        )
        self.inputs = Inputs(
            tuple(image.to(DEVICE).half() for image in given.images),
            tuple(mask.to(DEVICE) for mask in given.image_masks),
            given.token_ids.to(DEVICE),
            given.token_mask.to(DEVICE),
            given.state.to(DEVICE).half(),
        )
        flow = session.policy
        self.noise = torch.randn(1, flow.chunk_size, flow.max_action_dim, device=DEVICE)
        self.times = torch.tensor([[1.0 - k / self.count] for k in range(self.count)], device=DEVICE)
        self.embed: Any = self.model.embed_images
        self.together: Any = self.model.run_together
        self.state_of: Any = self.model.run_state
        self.step: Any = self.model.denoise_step
        with torch.inference_mode():
            self.prefix = self.model.run_prefix(*self.rows())

    def compile(self) -> None:
        self.embed, self.together, self.state_of, self.step = (
            self.torch.compile(part) for part in (self.embed, self.together, self.state_of, self.step)
        )

    def rows(self) -> tuple[Any, Any]:
        given = self.inputs
        return self.model.embed_prefix(self.embed(given.images), given.image_masks, given.token_ids, given.token_mask)

    def flow(self, prefix: Any) -> Any:
        actions = self.noise
        for k in range(self.count):
            actions = actions - self.step(prefix, actions.half(), self.times[k]) / self.count
        return actions

    def fresh_work(self) -> Any:
        rows, mask = self.rows()
        return self.flow(self.together(rows, mask, self.inputs.state))

    def cached_work(self) -> Any:
        return self.flow(self.state_of(self.prefix, self.inputs.state))

    def timed(self, work: Callable[[], Any]) -> dict[str, float]:
        with self.torch.inference_mode():
            self.wait()
            start = time.perf_counter()
            work()
            self.wait()
            return {"total": 1e3 * (time.perf_counter() - start)}

    def wait(self) -> None:
        self.torch.cuda.synchronize()

    def captured(self, work: Callable[[], Any]) -> Callable[[], Any]:
        """`work` as one CUDA graph."""
        torch = self.torch
        side = torch.cuda.Stream()
        with torch.inference_mode():
            with torch.cuda.stream(side):
                for _ in range(3):
                    work()
            side.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                work()
        return graph.replay

    def cases(self, name: str) -> Cases:
        return {
            f"{name}, fresh": lambda: self.timed(self.fresh_work),
            f"{name}, cached": lambda: self.timed(self.cached_work),
        }

    def graph_cases(self, name: str, tell: Tell) -> Cases:
        """The same, each as one CUDA graph; one that cannot be captured is told and left out."""
        made: Cases = {}
        for case, work in (("cached", self.cached_work), ("fresh", self.fresh_work)):
            try:
                replay = self.captured(work)
            except Exception as error:  # noqa: BLE001 -- the other cases are still of worth
                tell(case=f"{name}, {case}, CUDA graph", error=f"{type(error).__name__}: {str(error)[:800]}")
                continue
            made[f"{name}, {case}, CUDA graph"] = functools.partial(self.timed, replay)
        return made


def used_mb() -> int:
    import torch

    free, total = torch.cuda.mem_get_info()
    return round((total - free) / 2**20)


def in_turn(cases: Cases, rounds: int, tell: Tell) -> None:
    """Every case in every round, and the percentiles of each. A case that fails is told once and left out."""
    import numpy as np

    taken: dict[str, dict[str, list[float]]] = {name: {} for name in cases}
    alive = dict(cases)
    for number in range(-3, rounds):
        for name, case in list(alive.items()):
            try:
                parts = case()
            except Exception as error:  # noqa: BLE001 -- the other cases are still of worth
                tell(case=name, error=f"{type(error).__name__}: {str(error)[:800]}")
                del alive[name]
                continue
            if number >= 0:
                for part, value in parts.items():
                    taken[name].setdefault(part, []).append(value)
    for name, found in taken.items():
        for part, values in found.items():
            p50, p99 = np.percentile(values, [50, 99])
            tell(case=name, part=part, p50_ms=round(float(p50), 3), p99_ms=round(float(p99), 3), rounds=len(values))
