# SPDX-License-Identifier: Apache-2.0
"""Normalising tensors as the checkpoint's settings say. Arithmetic: docs/policy.md §1.4 and LeRobot's
normalize_processor."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor

from vla_edge.errors import ObservationError
from vla_edge.policies.normalization import Normalization
from vla_edge.policies.processing import RelativeActions


def pad_last(values: Tensor, size: int) -> Tensor:
    """Zeros appended to the last axis up to `size`."""
    return functional.pad(values, (0, size - values.shape[-1]))


def normalize(values: Tensor, by: Normalization) -> Tensor:
    """Robot units → normalised, over the last axis."""
    low, high = (torch.as_tensor(item, device=values.device) for item in (by.low, by.high))
    if by.mode == "MEAN_STD":
        return (values - low) / (high + by.eps)
    if by.mode == "MIN_MAX":
        return 2 * (values - low) / _span(low, high, by.eps) - 1
    return values


def unnormalize(values: Tensor, by: Normalization) -> Tensor:
    """Normalised → robot units, over the last axis. No epsilon with mean and std (docs/policy.md §1.4)."""
    low, high = (torch.as_tensor(item, device=values.device) for item in (by.low, by.high))
    if by.mode == "MEAN_STD":
        return values * high + low
    if by.mode == "MIN_MAX":
        return (values + 1) / 2 * _span(low, high, by.eps) + low
    return values


def to_absolute(actions: Tensor, state: Tensor | None, relative: RelativeActions | None) -> Tensor:
    """Actions [B, C, n] or [B, n] counted from their observation's state [B, n] → robot units."""
    return actions if relative is None else actions + _offset(actions, state, relative)


def to_relative(actions: Tensor, state: Tensor | None, relative: RelativeActions | None) -> Tensor:
    """The other way, for training targets."""
    return actions if relative is None else actions - _offset(actions, state, relative)


def _offset(actions: Tensor, state: Tensor | None, relative: RelativeActions) -> Tensor:
    if state is None:
        raise ObservationError("this policy's actions count from the state; give the state they were planned from")
    offset = torch.zeros(len(state), actions.shape[-1], dtype=actions.dtype, device=actions.device)
    joints = list(relative.joints)
    offset[:, joints] = state.to(offset)[:, joints]
    return offset[:, None] if actions.ndim == 3 else offset


def _span(low: Tensor, high: Tensor, eps: float) -> Tensor:
    return torch.where(high == low, torch.full_like(low, eps), high - low)
