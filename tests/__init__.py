# SPDX-License-Identifier: Apache-2.0
"""Tests, a package so that no other one of this name in an environment (draccus brings one) is taken for it."""
