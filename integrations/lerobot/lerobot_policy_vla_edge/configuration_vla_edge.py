# SPDX-License-Identifier: Apache-2.0
"""The configuration that LeRobot reads from a bundle's config.json, and its options on the command line."""

from __future__ import annotations

from dataclasses import dataclass

from lerobot.configs.policies import PreTrainedConfig


@PreTrainedConfig.register_subclass("vla_edge")
@dataclass
class VlaEdgeConfig(PreTrainedConfig):
    """chunk_size, n_action_steps: the policy's. checkpoint: LeRobot's folder of it, compared with on the first
    observation (None: a folder of its name beside the bundle, if there is one). tolerance: largest difference of that
    chunk, as a share of its largest action (None: 1e-3, for a bundle that is not float32 0.05). backend, threads: how
    the bundle is run, as `vla-runtime` has them."""

    chunk_size: int = 1
    n_action_steps: int = 1
    checkpoint: str | None = None
    tolerance: float | None = None
    backend: str = "ort"
    threads: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.n_action_steps <= self.chunk_size:
            raise ValueError(f"n_action_steps is {self.n_action_steps}; it must be 1 to {self.chunk_size}")

    @property
    def observation_delta_indices(self) -> None:
        return None

    @property
    def action_delta_indices(self) -> list[int]:
        return list(range(self.chunk_size))

    @property
    def reward_delta_indices(self) -> None:
        return None

    def get_optimizer_preset(self) -> None:
        raise NotImplementedError("a bundle is not trained; train the checkpoint it was made of")

    def get_scheduler_preset(self) -> None:
        return None

    def validate_features(self) -> None:
        pass
