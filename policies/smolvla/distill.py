# SPDX-License-Identifier: Apache-2.0
"""Few flow steps in place of many: the student learns the straight way from a noise to its teacher's chunk.

The teacher makes a chunk of a noise in its own steps; on the straight line between the two the velocity is the same
everywhere, and a student that has learnt it arrives in one step where the teacher does in ten (the regression to a
teacher's sample from the same noise, as in Luhman & Luhman, 2021, and the straightening of Liu et al., 2022). It is
asked for at the times at which the student's n steps begin. Teacher and student differ in the expert alone and read one
prefix; actions of the data are not needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from vla_edge.policies.smolvla.flow import FlowMatching


def step_starts(steps: int, samples: int, device: torch.device) -> Tensor:
    """Times [samples] at which one of `steps` equal steps begins, drawn from torch's global state."""
    return 1.0 - torch.randint(steps, (samples,), device=device).float() / steps


def share_backbone(teacher: FlowMatching, student: FlowMatching) -> None:
    """Let the teacher read with the student's backbone, which distilling leaves as it is, and never train."""
    teacher.vlm_with_expert.vlm = student.vlm_with_expert.vlm
    teacher.state_proj = student.state_proj
    teacher.requires_grad_(False)
    teacher.eval()
