# SPDX-License-Identifier: Apache-2.0
"""VICReg between two sets of tokens (Bardes et al., 2022), in the form of docs/training-methods.md §1."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vla_edge.errors import TrainingError
from vla_edge.policies.smolvla.text import float32_kept

SMALLEST_BATCH = 2


@dataclass(frozen=True, slots=True)
class VicregWeights:
    """Weights of invariance (λ), variance (μ) and covariance (ν)."""

    invariance: float
    variance: float
    covariance: float


def vicreg(first: Tensor, second: Tensor, weights: VicregWeights) -> Tensor:
    """Loss between [B, tokens, d] and [B, tokens, d], token i with token i, averaged over tokens; float32 scalar.

    Statistics run over the batch, and are rough below 32. TrainingError below a batch of 2.
    """
    batch = first.shape[0]
    if batch < SMALLEST_BATCH:
        raise TrainingError(
            f"VICReg needs a batch of at least {SMALLEST_BATCH}, got {batch}; its variances run over the batch"
        )
    pairs = zip(first.float().unbind(dim=1), second.float().unbind(dim=1), strict=True)
    with float32_kept(first):
        return torch.stack([_pair(one, other, weights) for one, other in pairs]).mean()


def _pair(one: Tensor, other: Tensor, weights: VicregWeights) -> Tensor:
    invariance = (one - other).square().mean()
    variance = _variance(one) + _variance(other)
    covariance = (_covariance(one) + _covariance(other)) / one.shape[1]
    return weights.invariance * invariance + weights.variance * variance + weights.covariance * covariance


def _variance(values: Tensor) -> Tensor:
    """How far the standard deviation of each dimension stays below one."""
    return torch.relu(1 - torch.sqrt(values.var(dim=0) + 1e-4)).mean()


def _covariance(values: Tensor) -> Tensor:
    """Sum of the squared covariances between different dimensions."""
    centred = values - values.mean(dim=0)
    matrix = centred.T @ centred / (values.shape[0] - 1)
    return matrix.square().sum() - matrix.diagonal().square().sum()
