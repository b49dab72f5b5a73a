"""Redis: the cache, and the clients of a single server and of a cluster. Imports runtime."""
