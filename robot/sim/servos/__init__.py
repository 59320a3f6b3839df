# SPDX-License-Identifier: Apache-2.0
"""Kinds of emulated servos: one file each, what its registers mean and what its firmware does."""
