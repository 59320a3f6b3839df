# SPDX-License-Identifier: Apache-2.0
"""Ranges, folding, INT8 and FP16 rewriting, the precision plan and its audit."""
