"""Names of functions in Kubernetes, where names cannot contain underscores."""


def resource_name(function_name: str) -> str:
    """Return the name of a function's Kubernetes resources: get-profile for get_profile."""
    return function_name.replace("_", "-")


def function_name(resource_name: str) -> str:
    """Return the name of a resource's function: get_profile for get-profile."""
    return resource_name.replace("-", "_")
