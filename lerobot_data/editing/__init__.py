# SPDX-License-Identifier: Apache-2.0
"""Datasets changed: the meta folder as a whole, or episodes written anew (convert, merge, split, delete, renumber)."""
