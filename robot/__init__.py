# SPDX-License-Identifier: Apache-2.0
"""The arm: Koch driver and bus, cameras, joint calibration, simulated arm and bus emulator."""
