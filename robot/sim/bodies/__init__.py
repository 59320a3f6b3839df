# SPDX-License-Identifier: Apache-2.0
"""The bodies of simulated arms: lengths, masses, servos, where the cubes and the cameras stand."""
