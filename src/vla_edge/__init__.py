# SPDX-License-Identifier: Apache-2.0
"""vla-edge: a SmolVLA-family policy from a PyTorch checkpoint to a moving robot arm."""

__version__ = "0.1.0"
