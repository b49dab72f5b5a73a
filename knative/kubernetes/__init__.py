"""A cluster: its API server, Jobs that run to their end, and the rendered manifests of an environment."""
