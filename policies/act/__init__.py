# SPDX-License-Identifier: Apache-2.0
"""ACT in PyTorch: a network for each picture, a transformer from picture and joint tokens to a chunk of actions."""
