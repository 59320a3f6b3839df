# SPDX-License-Identifier: Apache-2.0
"""Where SmolVLA is cut into graphs, and the numbers and tables that go with the cuts (docs/policy.md §2)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from vla_edge.bundle import PolicySpec
from vla_edge.errors import ConfigError
from vla_edge.export.family import Cut
from vla_edge.export.smolvla import expert, prefix, vision
from vla_edge.export.smolvla.attention import heads_of
from vla_edge.export.smolvla.prefix import Rows
from vla_edge.policies.smolvla.config import SmolVLAConfig
from vla_edge.policies.smolvla.expert import expert_width
from vla_edge.policies.smolvla.flow import flow_moments
from vla_edge.policies.smolvla.policy import SmolVLAPolicy
from vla_edge.policies.smolvla.vision import tokens_per_image

MIN_STEPS = 1
"""The fewest Euler steps that have a time table: a hurried runtime may take one, of a policy that is not distilled."""

KEY_MULTIPLE = 8
"""Rows of half-precision numbers of a head's width that lie at multiples of 16 bytes both ways."""


def smolvla_cuts(policy: SmolVLAPolicy, with_cls: bool, chunk: int) -> list[Cut]:
    """The graphs of `policy`, in the order they run; `chunk`: how many of its actions are computed."""
    model, rows = policy.model, prefix_rows(policy)
    keys = key_rows(rows)
    cuts = [
        Cut("vision", partial(vision.build_vision, model=model, config=policy.backbone, size=image_size(policy))),
        Cut("prefix", partial(prefix.build_prefix, model=model, rows=rows, keys=keys, with_cls=with_cls)),
        Cut(
            "state",
            partial(prefix.build_state, model=model, rows=rows.count, keys=keys, every_layer=policy.config.has_delta),
        ),
        Cut("expert", partial(expert.build_expert, model=model, rows=keys, chunk=chunk)),
    ]
    if policy.config.has_delta:
        if expert.cross_layers(model.vlm_with_expert.plan):
            cuts.append(Cut("delta_kv", partial(expert.build_delta_kv, model=model, rows=keys)))
        cuts.append(Cut("delta", partial(expert.build_delta, model=model, rows=keys)))
    return cuts


def image_size(policy: SmolVLAPolicy) -> tuple[int, int]:
    """(height, width) of the network's pictures. ConfigError when unresized cameras differ in size."""
    if (size := policy.config.resized_to) is not None:
        return size
    sizes = {(camera.height, camera.width) for camera in policy.settings.cameras}
    if len(sizes) > 1:
        raise ConfigError(
            f"cameras have sizes {sorted(sizes)} and resize_imgs_with_padding is null; graphs are static, set one "
            "size for all"
        )
    return sizes.pop()


def prefix_rows(policy: SmolVLAPolicy) -> Rows:
    """How the prefix is made up.

    An empty camera's picture is masked, so its slot exists only where its special tokens, which are not, do.
    `prefix_length` adds masked rows behind the state's, which nobody reads: it changes nothing here.
    """
    height, width = image_size(policy)
    special = policy.model.special
    return Rows(
        slots=len(policy.settings.cameras) + _empty_slots(policy),
        tokens=tokens_per_image(policy.backbone, height, width),
        start=len(special.start),
        end=len(special.end),
        language=policy.tokenizer.settings.max_length,
    )


def key_rows(rows: Rows) -> int:
    """R: the prefix's rows and the state's, padded to what a GPU's attention kernels take without a copy."""
    return -(-(rows.count + 1) // KEY_MULTIPLE) * KEY_MULTIPLE


def _empty_slots(policy: SmolVLAPolicy) -> int:
    return policy.config.empty_cameras if policy.model.special.start else 0


def policy_spec(policy: SmolVLAPolicy, chunk: int) -> PolicySpec:
    """The numbers of the policy that the runtime needs; `chunk`: how many of its actions are computed."""
    config, text, rows = policy.config, policy.backbone.text, prefix_rows(policy)
    plan = policy.model.vlm_with_expert.plan
    heads = heads_of(policy.model.vlm_with_expert.vlm.model.text_model)
    height, width = image_size(policy)
    return PolicySpec(
        type="smolvla",
        chunk_size=chunk,
        n_action_steps=min(chunk, config.n_action_steps),
        num_steps=config.num_steps,
        min_steps=least_steps(config),
        distilled=bool(config.distilled),
        state_dim=config.state_dim,
        action_dim=config.action_dim,
        max_state_dim=config.max_state_dim,
        max_action_dim=config.max_action_dim,
        image_height=height,
        image_width=width,
        tokens_per_image=rows.tokens,
        image_start_tokens=rows.start,
        image_end_tokens=rows.end,
        empty_cameras=_empty_slots(policy),
        prefix_rows=rows.count,
        key_rows=key_rows(rows),
        vlm_width=text.hidden_size,
        expert_width=expert_width(config, text),
        layers=plan.layers,
        kv_heads=heads.kv,
        head_dim=heads.width,
        self_layers=tuple(index for index, _ in expert.self_layers(plan)),
        cross_layers=tuple(index for index, _ in expert.cross_layers(plan)),
        resize_with_padding=config.resize_imgs_with_padding is not None,
        adapt_to_pi_aloha=config.adapt_to_pi_aloha,
        relative_joints=policy.settings.relative.joints if policy.settings.relative else (),
    )


def time_tables(policy: SmolVLAPolicy, step_sizes: Sequence[float]) -> dict[str, NDArray[np.float32]]:
    """`time_bias.<n>` float32 [n, E] for every number of steps the runtime may take; where the n steps are of
    `step_sizes`, `flow_times.<n>` float32 [n + 1] too."""
    config, path = policy.config, expert.action_path(policy.model)
    tables = {}
    for steps in range(least_steps(config), config.num_steps + 1):
        times = flow_times(step_sizes) if steps == len(step_sizes) else ()
        if times:
            tables[f"flow_times.{steps}"] = np.array(times, np.float32)
        begins = np.array([at for at, _ in flow_moments(steps, times)], np.float32)
        tables[f"time_bias.{steps}"] = path.time_bias(begins, config.min_period, config.max_period)
    return tables


def flow_times(step_sizes: Sequence[float]) -> tuple[float, ...]:
    """The flow times [n + 1], from 1 to 0, between steps of these sizes; float32 values."""
    ends = np.cumsum(step_sizes, dtype=np.float64) / np.sum(step_sizes, dtype=np.float64)
    return (1.0, *(float(np.float32(1 - end)) for end in ends[:-1]), 0.0)


def least_steps(config: SmolVLAConfig) -> int:
    """The fewest Euler steps that have a table: a hurried runtime may take MIN_STEPS, of a distilled policy none but
    those it was distilled to."""
    return config.num_steps if config.distilled else MIN_STEPS
