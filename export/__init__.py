# SPDX-License-Identifier: Apache-2.0
"""From a PyTorch policy to static ONNX graphs in a bundle that proves its own parity."""
