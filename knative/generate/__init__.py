"""Generate files from the functions and the settings: `make generate`. `make check` reports any difference."""
