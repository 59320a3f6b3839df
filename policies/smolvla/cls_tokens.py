"""The parameters of the CLS head: learnt tokens and their projection."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ClsProjection(nn.Module):
    """Two linear maps with a ReLU between."""

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, out)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, tokens, width] → [B, tokens, out]."""
        return self.fc2(torch.relu(self.fc1(tokens)))


def new_cls_tokens(count: int, width: int) -> nn.Parameter:
    """(1, count, width) drawn from N(0, 1)·0.02."""
    return nn.Parameter(torch.randn(1, count, width) * 0.02)
