# SPDX-License-Identifier: Apache-2.0
"""Numbers measured from recorded data that the deployed system needs: INT8 ranges, precision plan, gate threshold."""
