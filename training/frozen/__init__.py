# SPDX-License-Identifier: Apache-2.0
"""What a frozen part of the policy makes of every frame, computed once and kept on disk."""
