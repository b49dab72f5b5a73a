"""Redis, which may vanish at any moment: the cache, and the clients of one Redis and of a cluster. Imports runtime."""
