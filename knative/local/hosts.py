"""Under which names this machine may be asked for its pages and its API."""

KNOWN_HOST = r"(localhost|[0-9]{1,3}(\.[0-9]{1,3}){3}|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?"
"""localhost and IP addresses, with a port or without. A page that rebinds its own name to this machine (DNS rebinding)
sends that name, so it reads nothing here; no name can be rebound to an address."""
