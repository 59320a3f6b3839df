# SPDX-License-Identifier: Apache-2.0
"""Limits of prefix reuse, found from recorded episodes."""
