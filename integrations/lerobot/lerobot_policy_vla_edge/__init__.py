# SPDX-License-Identifier: Apache-2.0
"""LeRobot runs vla-edge bundles. Importing this registers the policy type `vla_edge`."""

from .configuration_vla_edge import VlaEdgeConfig

__all__ = ["VlaEdgeConfig"]
