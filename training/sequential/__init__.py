# SPDX-License-Identifier: Apache-2.0
"""Tasks learnt one after the other: phases from a stage file, replay of earlier tasks, transfer matrix."""
