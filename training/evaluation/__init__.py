# SPDX-License-Identifier: Apache-2.0
"""Predictions on held-out episodes: chunk errors, comparison of policies, report on a CLS head."""
