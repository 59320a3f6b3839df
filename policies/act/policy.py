# SPDX-License-Identifier: Apache-2.0
"""ACT as PyTorch users know it: load, predict, train, save.

Batches are what LeRobot's preprocessor makes: `observation.images.NAME` float [B, 3, h, w] and `observation.state`
[B, n], both normalised; for training `action` normalised [B, C, n] and `action_is_pad` bool [B, C]. Pictures given as
uint8 are normalised here. `preprocess` and `postprocess` make them from raw values and back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vla_edge.ensembling import TemporalEnsemble
from vla_edge.errors import CheckpointError, ObservationError
from vla_edge.files import new_folder
from vla_edge.policies.act.config import ACTConfig, read_config, write_config
from vla_edge.policies.act.network import ACT, loss
from vla_edge.policies.checkpoint import MODEL_FILE, load_weights, read_weights, write_weights
from vla_edge.policies.checkpoint_folder import resolve_checkpoint
from vla_edge.policies.features import ACTION, STATE
from vla_edge.policies.images import to_unit
from vla_edge.policies.processing import ProcessorSettings, read_processing
from vla_edge.policies.processor_files import write_processors
from vla_edge.policies.scaling import normalize, to_absolute, unnormalize


class ACTPolicy(nn.Module):
    """An ACT policy. `model` holds the weights under LeRobot's names; `settings` what happens around them."""

    family = "act"
    trains_whole = True

    def __init__(self, config: ACTConfig, settings: ProcessorSettings) -> None:
        super().__init__()
        self.config = config
        self.settings = settings
        self.model = ACT(config)
        self.stored_types: dict[str, torch.dtype] = {}
        self.digest = ""
        self.reset()

    @classmethod
    def from_pretrained(cls, folder: Path | str, vlm: Path | None = None, base: Path | None = None) -> ACTPolicy:
        """The policy that `folder` leads to (`resolve_checkpoint`), float32 on the CPU, in eval mode. base: the policy
        that a LoRA folder adapts. Errors: CheckpointError, ConfigError (a backbone folder `vlm` too, ACT has none)."""
        folder = resolve_checkpoint(Path(folder))
        if vlm is not None:
            raise CheckpointError(f"{folder}: ACT has no language backbone and no tokenizer; leave --vlm out")
        config, weights = read_config(folder), read_weights(folder, base)
        settings = read_processing(folder, config, weights.statistics)
        with torch.device("meta"):
            policy = cls(config, settings)
        load_weights(policy, weights)
        return policy.eval()

    def save_pretrained(self, folder: Path | str) -> None:
        """Write the policy to `folder` (which must not exist) in LeRobot's layout."""
        with new_folder(folder, CheckpointError) as place:
            self.write(place)

    def write(self, folder: Path, marks: Mapping[str, Any] | None = None) -> None:
        """The same into a folder that is there. marks are another family's."""
        write_config(folder, self.config)
        write_processors(folder, self.config, self.settings)
        write_weights(self, folder / MODEL_FILE, self.stored_types)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about this checkpoint."""
        beyond = self.config.beyond_lerobot
        own = (f"config.json: {beyond} is not LeRobot's, whose ACT does not open this checkpoint",) if beyond else ()
        return (*self.config.notes, *own, *self.settings.notes)

    def reset(self) -> None:
        """Forget queued actions and the ensemble: call at the start of an episode."""
        self._queue: deque[Tensor] = deque(maxlen=self.config.n_action_steps)
        coefficient = self.config.temporal_ensemble_coeff
        self._ensemble = None if coefficient is None else TemporalEnsemble(coefficient, self.config.chunk_size)

    def preprocess(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """Raw values → a batch of one: cameras uint8 [h, w, 3] by the names before `rename_map`, `observation.state`
        [n] in robot units. ObservationError names what is missing or wrong."""
        renamed = {self.settings.rename_map.get(name, name): value for name, value in observation.items()}
        for name in (STATE, *(camera.name for camera in self.config.cameras)):
            if name not in renamed:
                raise ObservationError(f"the observation has no {name}; it holds {', '.join(observation) or 'nothing'}")
        state = torch.as_tensor(renamed[STATE], dtype=torch.float32)
        if state.shape != (self.config.state_dim,):
            raise ObservationError(f"{STATE} has shape {list(state.shape)}, the policy takes [{self.config.state_dim}]")
        batch: dict[str, Any] = {STATE: normalize(state[None], self.settings.state)}
        for camera in self.config.cameras:
            batch[camera.name] = torch.as_tensor(renamed[camera.name])
        return batch | dict(zip((camera.name for camera in self.config.cameras), self.pictures(batch)))

    def postprocess(self, actions: Tensor, state: Tensor | None = None) -> Tensor:
        """Normalised actions [..., n] → robot units; state [B, n] in robot units, for relative actions only."""
        return to_absolute(unnormalize(actions, self.settings.action), state, self.settings.relative)

    def pictures(self, batch: Mapping[str, Any]) -> list[Tensor]:
        """The network's pictures [B, 3, h, w] in the cameras' order. uint8 ones are scaled and normalised, float ones
        are so already."""
        found = []
        for camera, by in zip(self.config.cameras, self.settings.pictures):
            if camera.name not in batch:
                raise ObservationError(f"the batch has no {camera.name}; ACT needs all its cameras")
            value = batch[camera.name]
            if value.dtype == torch.uint8:
                value = normalize(to_unit(value, camera.name).movedim(1, -1), by).movedim(-1, 1).contiguous()
            found.append(value)
        return found

    @torch.no_grad()
    def predict_action_chunk(self, batch: Mapping[str, Any], noise: Tensor | None = None) -> Tensor:
        """Normalised actions [B, C, n] for a batch. noise is not read: the latent is 0."""
        self.eval()
        chunk: Tensor = self.model(self.pictures(batch), batch[STATE])
        return chunk

    @torch.no_grad()
    def select_action(self, batch: Mapping[str, Any]) -> Tensor:
        """The next action [B, n], normalised: the ensemble's, or of the queue of `n_action_steps`."""
        if self._ensemble is not None:
            means = self._ensemble.mean(self.predict_action_chunk(batch)[0].cpu().numpy())
            return torch.from_numpy(means[:1]).float()
        if not self._queue:
            self._queue.extend(self.predict_action_chunk(batch).transpose(0, 1)[: self.config.n_action_steps])
        return self._queue.popleft()

    def forward(
        self, batch: Mapping[str, Any], noise: Tensor | None = None, time: Tensor | None = None, share: float = 1.0
    ) -> tuple[Tensor, dict[str, float]]:
        """The training loss, and its parts under LeRobot's names. noise: [B, Z] of the latent, drawn here when None;
        time is not read. share: what the error is multiplied by (`step_shares`)."""
        actions = batch[ACTION]
        if noise is None and self.config.use_vae:
            noise = torch.randn(len(actions), self.config.latent_dim, device=actions.device)
        whole, absolute, divergence = loss(
            self.model, self.pictures(batch), batch[STATE], actions, batch["action_is_pad"], noise
        )
        if share != 1.0:
            whole, absolute = whole + (share - 1) * absolute, share * absolute
        parts = {"loss": whole.item(), "l1_loss": absolute.item()}
        return whole, parts | ({"kld_loss": divergence.item()} if self.config.use_vae else {})


FAMILY_POLICY = ACTPolicy
