# SPDX-License-Identifier: Apache-2.0
"""Simulated arms, servo emulators, rendering."""
