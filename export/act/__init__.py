# SPDX-License-Identifier: Apache-2.0
"""Where ACT is cut into graphs."""
