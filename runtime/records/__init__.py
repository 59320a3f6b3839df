# SPDX-License-Identifier: Apache-2.0
"""What is made of a flight record: report, blame, replay, episodes."""
