# SPDX-License-Identifier: Apache-2.0
"""What few flow steps give and cost: plans a second at full size, and how well the trained policy still reaches."""
