# SPDX-License-Identifier: Apache-2.0
"""The policy in PyTorch: SmolVLA, its CLS head and delta expert, and checkpoint reading. Written for reading."""
