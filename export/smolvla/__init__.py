# SPDX-License-Identifier: Apache-2.0
"""Where SmolVLA is cut into graphs, and how each graph is written."""
