"""The API server of a cluster, Jobs in it, and the rendered manifests of an environment."""
