# SPDX-License-Identifier: Apache-2.0
"""A run: supervisor, control process, inference process, hand-over, operator, run folder, flight record."""
