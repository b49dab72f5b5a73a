"""What a function is called in Kubernetes, whose names may hold no underscore."""


def resource_name(function_name: str) -> str:
    """The Kubernetes resources of a function: get_profile is get-profile."""
    return function_name.replace("_", "-")


def function_name(resource_name: str) -> str:
    """The function behind a resource: get-profile is get_profile."""
    return resource_name.replace("-", "_")
