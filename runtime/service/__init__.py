"""`vla-runtime serve`: protocols, client sessions, access, status page."""
