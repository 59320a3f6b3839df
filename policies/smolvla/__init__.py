# SPDX-License-Identifier: Apache-2.0
"""SmolVLA in PyTorch: backbone, expert, flow matching, CLS head, delta expert; `policy.py` is what users hold."""

from vla_edge.policies.families import Preset, Scratch

FAMILY_SCRATCH = Scratch(
    "folder or Hub id of SmolVLM2 with its weights (needed)",
    Preset(16, 200_000, 1e-4, (0.9, 0.95), 1e-10, 1000, 30_000, 2.5e-6),
)
