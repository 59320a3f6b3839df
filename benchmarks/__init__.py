# SPDX-License-Identifier: Apache-2.0
"""Latency, jitter, drift and cache trade-off; each benchmark states its ceiling first."""
