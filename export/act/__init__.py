"""Where ACT is cut into graphs."""
