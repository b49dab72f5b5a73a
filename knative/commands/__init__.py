"""The commands of `aegis`, one module per group: from the command line to the result."""
