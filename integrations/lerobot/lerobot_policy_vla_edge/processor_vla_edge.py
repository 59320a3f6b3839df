# SPDX-License-Identifier: Apache-2.0
"""Processors around a bundle: names, batch and device only. The bundle normalises and tokenises itself, and back."""

from __future__ import annotations

from typing import Any

from lerobot.processor import (
    AddBatchDimensionProcessorStep,
    DeviceProcessorStep,
    PolicyProcessorPipeline,
    RenameObservationsProcessorStep,
)
from lerobot.processor.converters import policy_action_to_transition, transition_to_policy_action

from .configuration_vla_edge import VlaEdgeConfig


def make_vla_edge_pre_post_processors(
    config: VlaEdgeConfig, dataset_stats: dict[str, Any] | None = None
) -> tuple[Any, Any]:
    """Both pipelines; a bundle's own files say the same."""
    before = [
        RenameObservationsProcessorStep(rename_map={}),
        AddBatchDimensionProcessorStep(),
        DeviceProcessorStep(device=config.device),
    ]
    return PolicyProcessorPipeline(steps=before, name="policy_preprocessor"), PolicyProcessorPipeline(
        steps=[DeviceProcessorStep(device="cpu")],
        name="policy_postprocessor",
        to_transition=policy_action_to_transition,
        to_output=transition_to_policy_action,
    )
