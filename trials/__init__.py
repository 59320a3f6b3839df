# SPDX-License-Identifier: Apache-2.0
"""Closed loop in simulation and checks before a robot: lockstep, tasks and their data, evaluation, deployment
checklist."""
