"""The commands of `aegis`, a module for each group: from the command line to the result."""
