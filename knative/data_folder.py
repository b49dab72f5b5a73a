"""The data folder of `make up`, for commands that run beside it."""

import os
from pathlib import Path

ENVIRONMENT = "environment.json"
"""The settings of the service. Exists while it runs."""
LOCK = "lock"
"""Locked from before the service reads its secrets until all of its processes have ended."""
SECRETS = "secrets.json"


def path() -> Path:
    """Return DATA_DIR, or .local in the root of the repository."""
    return (Path(__file__).parents[1] / (os.environ.get("DATA_DIR") or ".local")).resolve()
