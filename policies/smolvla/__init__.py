# SPDX-License-Identifier: Apache-2.0
"""SmolVLA in PyTorch: backbone, expert, flow matching, CLS head, delta expert; `policy.py` is what users hold."""
