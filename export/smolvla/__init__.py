"""Where SmolVLA is cut into graphs, and how each graph is written."""
