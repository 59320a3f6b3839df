"""Latency, jitter, drift and cache trade-off; each benchmark states its ceiling first."""
