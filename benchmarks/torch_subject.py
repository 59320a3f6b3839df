# SPDX-License-Identifier: Apache-2.0
"""The policy in torch, in LeRobot's order: pictures, then prefix and state in one pass, then the steps.

Nothing is cached, split or precomputed, and cross-attending layers project
their keys anew in every step, as LeRobot's own policy does.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from vla_edge.benchmarks.subject import FRESH, OBSERVATIONS, SubjectSpec
from vla_edge.bundle import open_bundle
from vla_edge.calibration.precision.synthetic import noise_at, synthetic
from vla_edge.contract import Observation
from vla_edge.policies.families import load_policy
from vla_edge.policies.features import STATE


class TorchSubject:
    """See `subjects.Subject`; float32 on the CPU."""

    cases: tuple[str, ...] = (FRESH,)
    facts: dict[str, Any]

    def __init__(self, spec: SubjectSpec) -> None:
        if spec.threads:
            torch.set_num_threads(spec.threads)
        self._policy = load_policy(spec.path)
        self._data = synthetic(open_bundle(spec.inputs), OBSERVATIONS, 0)
        if not self._policy.config.noised:
            if spec.compiled:
                self._policy.model = torch.compile(self._policy.model)
            self.facts = self._facts(spec)
            return
        model = self._policy.model
        parts: tuple[Any, ...] = (model.embed_images, model.run_together, model.denoise_step)
        self._embed: Any
        self._together: Any
        self._step: Any
        self._embed, self._together, self._step = (torch.compile(part) for part in parts) if spec.compiled else parts
        self.facts = self._facts(spec)

    def _facts(self, spec: SubjectSpec) -> dict[str, Any]:
        return {
            "detail": f"torch {torch.__version__} {'compiled' if spec.compiled else 'eager'} float32, LeRobot's "
            f"order, {torch.get_num_threads()} threads",
            "checkpoint": self._policy.digest,
            "chunk": self._policy.config.chunk_size,
            "steps": getattr(self._policy.config, "num_steps", 1),
        }

    def run(self, case: str, number: int) -> dict[str, float]:
        graphs_ms, _ = self._infer(number % OBSERVATIONS)
        return graphs_ms

    def actions(self, number: int) -> np.ndarray:
        return self._infer(number)[1]

    @torch.inference_mode()
    def _infer(self, number: int) -> tuple[dict[str, float], np.ndarray]:
        observation = self._data.observations[number]
        if not self._policy.config.noised:
            return self._in_one_pass(observation)
        model, config = self._policy.model, self._policy.config
        steps = config.num_steps
        marks = [time.perf_counter()]
        raw = {camera.source: observation.frames[camera.name].image for camera in self._policy.settings.cameras}
        inputs = self._policy.prepare(
            self._policy.preprocess({**raw, STATE: observation.joints.positions, "task": observation.task})
        )
        marks.append(time.perf_counter())
        tokens = self._embed(inputs.images)
        marks.append(time.perf_counter())
        rows, mask = model.embed_prefix(tokens, inputs.image_masks, inputs.token_ids, inputs.token_mask)
        prefix = self._together(rows, mask, inputs.state)
        marks.append(time.perf_counter())
        actions = torch.from_numpy(noise_at(number, config.chunk_size, config.max_action_dim))[None]
        for step in range(steps):
            actions = actions - self._step(prefix, actions, torch.tensor([1.0 - step / steps])) / steps
        marks.append(time.perf_counter())
        normalized = self._policy.real_actions(actions)
        self._policy.postprocess(normalized)
        marks.append(time.perf_counter())
        cameras = len(inputs.images)
        prepare, vision, together, loop, post = (1e3 * (later - earlier) for earlier, later in zip(marks, marks[1:]))
        graphs_ms = {
            "camera preparation": prepare / cameras,
            "vision": vision / cameras,
            "prefix": together,
            "step": loop / steps,
            "loop": loop,
            "post-processing": post,
            "inference": 1e3 * (marks[-1] - marks[0]),
        }
        return graphs_ms, normalized[0].numpy()

    def _in_one_pass(self, observation: Observation) -> tuple[dict[str, float], np.ndarray]:
        """A policy without flow steps: pictures, then the whole network at once."""
        marks = [time.perf_counter()]
        raw = {camera.source: observation.frames[camera.name].image for camera in self._policy.settings.cameras}
        batch = self._policy.preprocess({**raw, STATE: observation.joints.positions, "task": observation.task})
        marks.append(time.perf_counter())
        normalized = self._policy.predict_action_chunk(batch)
        marks.append(time.perf_counter())
        self._policy.postprocess(normalized)
        marks.append(time.perf_counter())
        prepare, network, post = (1e3 * (later - earlier) for earlier, later in zip(marks, marks[1:]))
        graphs_ms = {
            "camera preparation": prepare / len(raw),
            "network": network,
            "post-processing": post,
            "inference": 1e3 * (marks[-1] - marks[0]),
        }
        return graphs_ms, normalized[0].numpy()
