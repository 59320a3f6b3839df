# SPDX-License-Identifier: Apache-2.0
"""LeRobot's own policy on the same weights and observations, where `lerobot` is installed.

Only the network is LeRobot's; observation and un-normalisation are our policy room's, whose arrays equal LeRobot's, so
that both sides start from the same numbers. LeRobot tells no times of graphs.
"""

from __future__ import annotations

import time
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from vla_edge.benchmarks.subject import FRESH, OBSERVATIONS, SubjectSpec
from vla_edge.bundle import open_bundle
from vla_edge.calibration.precision.synthetic import noise_at, synthetic
from vla_edge.errors import ConfigError
from vla_edge.policies.checkpoint_folder import find_folder
from vla_edge.policies.families import load_policy
from vla_edge.policies.features import STATE


class LerobotSubject:
    """See `subjects.Subject`; the types LeRobot loads, on the CPU. ConfigError without `lerobot`."""

    cases: tuple[str, ...] = (FRESH,)

    def __init__(self, spec: SubjectSpec) -> None:
        self._ours = load_policy(spec.path)
        if beyond := self._ours.config.beyond_lerobot:
            raise ConfigError(
                f"--against lerobot: {beyond} in {spec.path} is not LeRobot's, which does not open it; use --against "
                "torch"
            )
        if find_spec("lerobot") is None:
            raise ConfigError(
                "--against lerobot: lerobot is not installed here; install it beside vla-edge in an environment of "
                "its own, or use --against torch"
            )
        from lerobot.configs.policies import PreTrainedConfig
        from lerobot.policies.factory import get_policy_class

        if spec.threads:
            torch.set_num_threads(spec.threads)
        self._ours.model = None  # only its processors are used; two networks are not kept
        config = PreTrainedConfig.from_pretrained(str(spec.path))
        config.device = "cpu"
        backbone = hasattr(config, "vlm_model_name")
        if backbone:
            # LeRobot takes a relative folder from where it is started, and would load the backbone's own weights first.
            config.vlm_model_name = str(find_folder(config.vlm_model_name, spec.path, ("config.json",)))
            config.load_vlm_weights = False
        if hasattr(config, "pretrained_backbone_weights"):
            config.pretrained_backbone_weights = None  # they would be downloaded, and replaced by the checkpoint's
        self._policy = get_policy_class(config.type).from_pretrained(str(spec.path), config=config, strict=True)
        self._policy.eval()
        if backbone:
            _place_patches_by_count(self._policy.model.vlm_with_expert.get_vlm_model().vision_model.embeddings)
        self._data = synthetic(open_bundle(spec.inputs), OBSERVATIONS, 0)
        self.facts: dict[str, Any] = {
            "detail": f"LeRobot's {config.type}, torch {torch.__version__} eager, {torch.get_num_threads()} threads",
            "checkpoint": self._ours.digest,
            "chunk": self._ours.config.chunk_size,
            "steps": getattr(self._ours.config, "num_steps", 1),
        }

    def run(self, case: str, number: int) -> dict[str, float]:
        start = time.perf_counter()
        self._infer(number % OBSERVATIONS)
        return {"inference": 1e3 * (time.perf_counter() - start)}

    def actions(self, number: int) -> np.ndarray:
        return self._infer(number)

    @torch.inference_mode()
    def _infer(self, number: int) -> np.ndarray:
        observation = self._data.observations[number]
        raw = {camera.source: observation.frames[camera.name].image for camera in self._ours.settings.cameras}
        batch = self._ours.preprocess({**raw, STATE: observation.joints.positions, "task": observation.task})
        self._policy.reset()
        config, drawn = self._ours.config, {}
        if config.noised:
            drawn["noise"] = torch.from_numpy(noise_at(number, config.chunk_size, config.max_action_dim))[None]
        normalized = self._policy.predict_action_chunk(batch, **drawn)
        self._ours.postprocess(normalized.float())
        return normalized[0].float().numpy()


def _place_patches_by_count(embeddings: Any) -> None:
    """transformers 4.57 finds a patch's place by comparing float32 fractions and is off by one (in bfloat16, which
    published checkpoints use, it is right); a square picture's patches stand at 0, 1, 2, …"""

    def forward(pixel_values: torch.Tensor, patch_attention_mask: torch.Tensor) -> torch.Tensor:
        patches: torch.Tensor = embeddings.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        return patches + embeddings.position_embedding.weight

    embeddings.forward = forward
