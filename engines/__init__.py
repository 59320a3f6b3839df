"""A bundle's graphs made runnable, one backend a file. Never imports torch."""
