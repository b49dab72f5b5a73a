"""The host names that the pages and the API accept."""

KNOWN_HOST = r"(localhost|[0-9]{1,3}(\.[0-9]{1,3}){3}|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?"
"""localhost and IP addresses, with or without a port. A page that rebinds its own name to this machine (DNS rebinding)
sends that name as its host and is refused."""
