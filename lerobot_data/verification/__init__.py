"""`vla-data verify`: a dataset opened for checking, the checks, and what they say."""
