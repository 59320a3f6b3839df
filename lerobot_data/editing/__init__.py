"""Datasets changed: the meta folder as a whole, or episodes written anew (convert, merge, split, delete, renumber)."""
