# SPDX-License-Identifier: Apache-2.0
"""SmolVLA as export sees it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_edge.bundle import (
    MAX_FLOW_STEPS,
    Bundle,
    CorrectionSpec,
    NormalizationSpec,
    PolicySpec,
    Programme,
    smolvla_programme,
)
from vla_edge.engines.engine import Engine
from vla_edge.errors import CheckpointError, ConfigError
from vla_edge.export.family import Comparison, Cut, Deviations
from vla_edge.export.proof_observations import TASKS
from vla_edge.export.smolvla.cuts import policy_spec, smolvla_cuts, time_tables
from vla_edge.export.smolvla.parity import COMPARED, SmolVLAComparison
from vla_edge.policies.processing import CameraSettings
from vla_edge.policies.smolvla.cls import why_no_gate
from vla_edge.policies.smolvla.policy import SmolVLAPolicy


class SmolVLAExporter:
    """See `Exporter`."""

    graphs = COMPARED
    masks_cameras = True
    placeholder_size: tuple[int, int] | None = (256, 256)
    """What config.json of every fine-tune of lerobot/smolvla_base states."""

    def __init__(self, policy: SmolVLAPolicy) -> None:
        self.policy = policy
        self._chunk = policy.config.chunk_size
        self._why_pooled = why_no_gate(policy.model)

    def check(self, checkpoint: Path, step_sizes: tuple[float, ...]) -> None:
        config = self.policy.config
        if step_sizes and config.distilled:
            raise ConfigError(
                f"{checkpoint}: the policy was distilled to {config.num_steps} equal steps; leave --step-sizes out"
            )
        if len(step_sizes) > config.num_steps:
            raise ConfigError(
                f"--step-sizes gives {len(step_sizes)} steps, the policy of {checkpoint} takes at most "
                f"{config.num_steps}; give fewer, or raise num_steps in its config.json"
            )
        if config.num_steps > MAX_FLOW_STEPS:
            raise ConfigError(
                f"{checkpoint}: num_steps is {config.num_steps}, the runtime takes at most {MAX_FLOW_STEPS}; lower it "
                "in config.json (10 is usual)"
            )
        if self.policy.settings.relative and config.adapt_to_pi_aloha:
            raise ConfigError(f"{checkpoint}: relative actions with adapt_to_pi_aloha are not supported")
        _check_token_ids(self.policy)

    def take_empty_cameras(self, checkpoint: Path) -> None:
        config, settings = self.policy.config, self.policy.settings
        if not config.empty_cameras:
            raise ConfigError(f"{checkpoint}: config.json has no empty_cameras; leave out --take-empty-cameras")
        cameras = {camera.name: camera for camera in settings.cameras}
        size = (settings.cameras[0].height, settings.cameras[0].width)
        self.policy.settings = replace(
            settings, cameras=tuple(cameras.get(name, CameraSettings(name, name, *size)) for name in config.pictures)
        )

    def shorten_chunk(self, checkpoint: Path, size: int) -> None:
        """An action attends to no later one (docs/policy.md): the first ones are the same without the rest, which the
        proof holds against the policy's whole chunk."""
        config = self.policy.config
        if size > config.chunk_size:
            raise ConfigError(
                f"{checkpoint}: the policy makes {config.chunk_size} actions a chunk; give --chunk-size up to that"
            )
        if config.has_delta:
            raise ConfigError(
                f"{checkpoint}: the error of its delta expert was measured on the whole chunk; leave out --chunk-size"
            )
        self._chunk = size
        if size < config.chunk_size:
            note = f"holds the first {size} of the policy's {config.chunk_size} actions a chunk (--chunk-size)"
            self.policy.config = replace(config, notes=(*config.notes, note))

    def cuts(self) -> list[Cut]:
        return smolvla_cuts(self.policy, self._why_pooled is None, self._chunk)

    def spec(self) -> PolicySpec:
        return policy_spec(self.policy, self._chunk)

    def programme(self, graphs: Iterable[str]) -> Programme:
        return smolvla_programme(graphs)

    def pictures(self) -> tuple[NormalizationSpec, ...]:
        return ()

    def tables(self, step_sizes: tuple[float, ...]) -> dict[str, NDArray[np.float32]]:
        return time_tables(self.policy, step_sizes)

    def gate(self) -> dict[str, Any]:
        why = self._why_pooled
        return {"kind": "cls"} if why is None else {"kind": "pooled", "why_not_cls": why}

    def correction(self) -> CorrectionSpec | None:
        config = self.policy.config
        return CorrectionSpec(config.delta_target, config.delta_relative_error) if config.has_delta else None

    def comparison(self, bundle: Bundle, engine: Engine, deviations: Deviations) -> Comparison:
        return SmolVLAComparison(self.policy, bundle, engine, deviations)


FAMILY_EXPORTER = SmolVLAExporter


def _check_token_ids(policy: SmolVLAPolicy) -> None:
    """The tokenizer must be the backbone's: padding, image tokens and ordinary text lie in its vocabulary."""
    settings, special, limit = policy.tokenizer.settings, policy.model.special, policy.backbone.text.vocab_size
    text, _ = policy.tokenizer.encode(TASKS)
    highest = max((settings.pad_id, *special.start, *special.end, int(text.max())))
    if highest >= limit:
        raise CheckpointError(
            f"{settings.folder}: the tokenizer makes id {highest}, the backbone knows ids below {limit}; use the "
            "policy's own tokenizer"
        )
