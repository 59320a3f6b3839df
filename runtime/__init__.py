# SPDX-License-Identifier: Apache-2.0
"""The on-robot service: prepare inputs, prefix cache and gate, flow loop, schedule, control core."""
