# SPDX-License-Identifier: Apache-2.0
"""LeRobot datasets v2.1 and v3.0: read, write, convert, verify, statistics. No torch."""
