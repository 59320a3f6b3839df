# SPDX-License-Identifier: Apache-2.0
"""A bundle's graphs made runnable, one backend a file. Never imports torch."""
