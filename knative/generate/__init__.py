"""Writes what follows from the functions and the settings: `make generate`. `make check` refuses a difference."""
