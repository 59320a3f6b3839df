# SPDX-License-Identifier: Apache-2.0
"""A vla-edge bundle as a LeRobot policy."""

from __future__ import annotations

import json
import logging
from collections import deque
from pathlib import Path
from typing import Any

import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor

from vla_edge.bundle import Bundle, open_bundle
from vla_edge.contract import Frame, JointReading, Observation
from vla_edge.engines.engine import EngineOptions, load_engine
from vla_edge.ensembling import TemporalEnsemble
from vla_edge.errors import BundleError, ConfigError, VlaEdgeError
from vla_edge.runtime.inference.session import InferenceRequest, PolicySession, SessionOptions

from .configuration_vla_edge import VlaEdgeConfig

STATE, TASK = "observation.state", "task"
logger = logging.getLogger(__name__)


class VlaEdgePolicy(PreTrainedPolicy):
    """Batches come raw, as the robot gives them: pictures float [1, 3, h, w] in 0..1, state [1, n] and actions in the
    joint units of the policy's data, the task as text. BundleError, ConfigError: the bundle cannot be run so."""

    config_class = VlaEdgeConfig
    name = "vla_edge"

    def __init__(self, config: VlaEdgeConfig, bundle: Bundle) -> None:
        super().__init__(config)
        policy = bundle.manifest.policy
        if policy.relative_joints:
            raise ConfigError(
                f"{bundle.path}: its actions count from the state, which LeRobot's queue does not keep; run it with "
                "vla-runtime"
            )
        engine = load_engine(config.backend, EngineOptions(threads=config.threads))
        self._bundle = bundle
        self._session = PolicySession(bundle, engine, SessionOptions(allow_truncation=True))
        self._lerobots: _LerobotsPolicy | None = None
        self._compared = False
        coefficient = policy.ensemble_coefficient
        self._ensemble = None if coefficient is None else TemporalEnsemble(coefficient, policy.chunk_size)
        self.reset()
        logger.info("vla-edge: bundle %s, %s", bundle.digest[:12], engine.detail)

    @classmethod
    def from_pretrained(
        cls, pretrained_name_or_path: str | Path, *, config: PreTrainedConfig | None = None, **_: Any
    ) -> VlaEdgePolicy:
        """The bundle in a folder, every file of it verified. Ends the program in one line when it cannot be run."""
        try:
            bundle = open_bundle(pretrained_name_or_path)
            bundle.verify()
            made = config or PreTrainedConfig.from_pretrained(pretrained_name_or_path)
            return cls(made, bundle).eval()
        except VlaEdgeError as error:
            raise SystemExit(f"vla-edge: {error}") from None

    def reset(self) -> None:
        """Start of an episode."""
        self._queue: deque[Tensor] = deque(maxlen=self.config.n_action_steps)
        self._session.reset()
        if self._ensemble is not None:
            self._ensemble.reset()
        if self._lerobots is not None:
            self._lerobots.policy.reset()

    @torch.no_grad()
    def select_action(self, batch: dict[str, Any], **_: Any) -> Tensor:
        """The next action [1, n] in joint units, by LeRobot's queue or the ensemble."""
        if not self._compared:
            self._compare(batch)
        if self._lerobots is not None:
            return self._lerobots.select_action(batch)
        if self._ensemble is not None:
            means = self._ensemble.mean(self.predict_action_chunk(batch)[0].cpu().numpy())
            return torch.from_numpy(means[:1]).float()
        if not self._queue:
            chunk = self.predict_action_chunk(batch)
            self._queue.extend(chunk.transpose(0, 1)[: self.config.n_action_steps])
        return self._queue.popleft()

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Any], **_: Any) -> Tensor:
        """Actions [1, C, n] in joint units."""
        policy, noise = self._session.policy, None
        if self._bundle.manifest.programme.step:
            # As many rows as LeRobot draws, for the same numbers; a bundle may hold a chunk's first actions alone.
            whole = self._bundle.manifest.checkpoint.get("config", {}).get("chunk_size", policy.chunk_size)
            noise = torch.normal(0.0, 1.0, (1, whole, policy.max_action_dim))[0, : policy.chunk_size].numpy()
        result = self._session.infer(InferenceRequest(self._observation(batch), 0, noise=noise))
        assert result is not None
        return torch.from_numpy(result.actions)[None].to(batch[STATE].device)

    def _observation(self, batch: dict[str, Any]) -> Observation:
        names = {name for camera in self._bundle.manifest.cameras for name in (camera.name, camera.source)}
        frames = {}
        for name in names & batch.keys():
            picture = (batch[name][0].permute(1, 2, 0) * 255).round().to(torch.uint8)
            frames[name] = Frame(name, picture.contiguous().cpu().numpy(), 0, 0)
        task = batch.get(TASK, "")
        state = batch[STATE][0].float().cpu().numpy()
        return Observation(0, frames, JointReading(0, 0, state), task if isinstance(task, str) else task[0])

    def _compare(self, batch: dict[str, Any]) -> None:
        """On the first observation: LeRobot's own chunk beside the bundle's, where the checkpoint is at hand."""
        self._compared = True
        folder = _checkpoint(self.config, self._bundle)
        if folder is None:
            logger.warning(
                "vla-edge: no checkpoint at hand (--policy.checkpoint=DIR): not compared with LeRobot's policy"
            )
            return
        state = torch.get_rng_state()  # both draw the same noise, and the run draws on as if nothing was compared
        try:
            lerobots = _LerobotsPolicy(folder, self.config.device)
        except Exception as error:  # noqa: BLE001 - whatever LeRobot raises: a field, a backbone or a type it lacks
            torch.set_rng_state(state)
            logger.warning(
                "vla-edge: LeRobot does not open the checkpoint %s (%s): not compared with its policy",
                folder,
                " ".join(str(error).split()) or type(error).__name__,
            )
            return
        torch.set_rng_state(state)
        theirs = lerobots.chunk(batch)[:, : self._session.policy.chunk_size]
        torch.set_rng_state(state)
        ours = self.predict_action_chunk(batch).cpu()
        torch.set_rng_state(state)
        error = float((ours - theirs).abs().max() / theirs.abs().max())
        limit = self.config.tolerance
        if limit is None:
            limit = 1e-3 if self._bundle.manifest.precision.get("requested") == "fp32" else 0.05
        if error <= limit:
            logger.info("vla-edge: the first chunk is LeRobot's to %.1e of its largest action", error)
            return
        logger.warning(
            "vla-edge: the bundle's first chunk differs from LeRobot's by %.1e of its largest action "
            "(--policy.tolerance is %g); LeRobot's policy runs instead",
            error,
            limit,
        )
        lerobots.policy.reset()
        self._lerobots = lerobots

    def get_optim_params(self) -> dict[str, Any]:
        return {}

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Any] | None]:
        raise NotImplementedError("a bundle is not trained; train the checkpoint it was made of")


class _LerobotsPolicy:
    """LeRobot's own policy of a checkpoint with its processors, on raw batches."""

    def __init__(self, folder: Path, device: str) -> None:
        config = PreTrainedConfig.from_pretrained(folder)
        config.device = device
        if hasattr(config, "pretrained_backbone_weights"):
            config.pretrained_backbone_weights = None  # they would be downloaded, and replaced by the checkpoint's
        self.policy = get_policy_class(config.type).from_pretrained(folder, config=config, strict=True)
        self.policy.to(device).eval()
        places = {"device_processor": {"device": device}}
        self._before, self._after = make_pre_post_processors(
            config, pretrained_path=str(folder), preprocessor_overrides=places
        )

    def chunk(self, batch: dict[str, Any]) -> Tensor:
        chunk: Tensor = self._after(self.policy.predict_action_chunk(self._before(dict(batch))))
        self.policy.reset()
        return chunk.float().cpu()

    def select_action(self, batch: dict[str, Any]) -> Tensor:
        action: Tensor = self._after(self.policy.select_action(self._before(dict(batch))))
        return action


def _checkpoint(config: VlaEdgeConfig, bundle: Bundle) -> Path | None:
    """LeRobot's folder of the bundle's policy: as given, else of its name beside the bundle. BundleError: it is not."""
    named = Path(str(bundle.manifest.checkpoint.get("name", "")))
    folder = Path(config.checkpoint) if config.checkpoint else bundle.path.resolve().parent / named.name
    if not (folder / "config.json").is_file():
        if config.checkpoint:
            raise BundleError(
                f"--policy.checkpoint {folder}: no config.json in it; give LeRobot's folder, or leave it out"
            )
        return None
    found = json.loads((folder / "config.json").read_text()).get("type")
    return folder if found == bundle.manifest.policy.type else None
