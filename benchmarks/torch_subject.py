# SPDX-License-Identifier: Apache-2.0
"""The policy in torch, in LeRobot's order: pictures, then prefix and state in one pass, then the steps.

Nothing is cached, split or precomputed, and cross-attending layers project
their keys anew in every step, as LeRobot's own policy does.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from vla_edge.benchmarks.subject import FRESH, OBSERVATIONS, SubjectSpec
from vla_edge.bundle import open_bundle
from vla_edge.calibration.precision.synthetic import noise_at, synthetic
from vla_edge.policies.families import load_policy
from vla_edge.policies.features import STATE


class TorchSubject:
    """See `subjects.Subject`; float32 on the CPU."""

    cases: tuple[str, ...] = (FRESH,)

    def __init__(self, spec: SubjectSpec) -> None:
        if spec.threads:
            torch.set_num_threads(spec.threads)
        self._policy = load_policy(spec.path)
        self._data = synthetic(open_bundle(spec.inputs), OBSERVATIONS, 0)
        model: Any = self._policy.model
        made: Callable[[Any], Any] = torch.compile if spec.compiled else lambda part: part
        if self._policy.config.noised:
            parts = (model.embed_images, model.run_together, model.denoise_step)
            self._embed, self._together, self._step = map(made, parts)
        else:
            self._policy.model = made(model)
        self.facts: dict[str, Any] = {
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
        """Milliseconds of each part, and the chunk."""
        observation, policy, config = self._data.observations[number], self._policy, self._policy.config
        took: dict[str, float] = {}
        last = start = time.perf_counter()

        def done(part: str, times: int = 1) -> None:
            nonlocal last
            now = time.perf_counter()
            took[part], last = 1e3 * (now - last) / times, now

        raw = {camera.source: observation.frames[camera.name].image for camera in policy.settings.cameras}
        batch = policy.preprocess({**raw, STATE: observation.joints.positions, "task": observation.task})
        if config.noised:
            inputs = policy.prepare(batch)
            done("camera preparation", len(inputs.images))
            tokens = self._embed(inputs.images)
            done("vision", len(inputs.images))
            rows, mask = policy.model.embed_prefix(tokens, inputs.image_masks, inputs.token_ids, inputs.token_mask)
            prefix, steps = self._together(rows, mask, inputs.state), config.num_steps
            done("prefix")
            actions = torch.from_numpy(noise_at(number, config.chunk_size, config.max_action_dim))[None]
            for step in range(steps):
                actions = actions - self._step(prefix, actions, torch.tensor([1.0 - step / steps])) / steps
            done("loop")
            took["step"] = took["loop"] / steps
            normalized = policy.real_actions(actions)
        else:
            done("camera preparation", len(raw))
            normalized = policy.predict_action_chunk(batch)
            done("network")
        policy.postprocess(normalized)
        done("post-processing")
        took["inference"] = 1e3 * (last - start)
        return took, normalized[0].numpy()
