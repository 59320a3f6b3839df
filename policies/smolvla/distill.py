# SPDX-License-Identifier: Apache-2.0
"""Few flow steps in place of many: the student learns the straight way from a noise to its teacher's chunk.

The teacher makes a chunk of a noise in its own steps; on the straight line between the two the velocity is the same
everywhere, and a student that has learnt it arrives in one step where the teacher does in ten (the regression to a
teacher's sample from the same noise, as in Luhman & Luhman, 2021, and the straightening of Liu et al., 2022). Most
samples are asked for at the times at which the student's n steps begin, a share at any time. Teacher and student differ
in the expert alone and read one prefix; actions of the data are not needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from vla_edge.policies.smolvla.flow import FlowMatching

ANY_TIME = 0.25
"""The share of samples at any time (benchmarks/LOG.md)."""


def times_to_learn(steps: int, time: Tensor) -> Tensor:
    """Of the drawn times [B] a share as they are; the others become those at which one of `steps` equal steps begins,
    drawn from torch's global state."""
    starts = 1.0 - torch.randint(steps, time.shape, device=time.device).float() / steps
    return torch.where(torch.rand(time.shape, device=time.device) < ANY_TIME, time, starts)


def share_backbone(teacher: FlowMatching, student: FlowMatching) -> None:
    """Let the teacher read with the student's backbone, which distilling leaves as it is, and never train."""
    teacher.vlm_with_expert.vlm = student.vlm_with_expert.vlm
    teacher.state_proj = student.state_proj
    teacher.requires_grad_(False)
    teacher.eval()
