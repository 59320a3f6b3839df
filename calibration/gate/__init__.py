"""Limits of prefix reuse, found from recorded episodes."""
