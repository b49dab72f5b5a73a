"""All functions by name: `functions-framework --target login` finds login and loads no other function."""

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    try:
        module = importlib.import_module(f"functions.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"functions.{name}":
            raise
        raise AttributeError(f"there is no function {name}") from None
    return getattr(module, name)
