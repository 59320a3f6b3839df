# SPDX-License-Identifier: Apache-2.0
"""Many plans a second: what few flow steps give and cost, a moving cube followed, what the cache keeps in motion."""
