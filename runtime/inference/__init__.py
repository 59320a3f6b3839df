"""One observation to one chunk: preparation, graphs on buffers, prefix cache and scene gate, flow loop, session."""
