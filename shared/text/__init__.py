"""Texts that people type: how they are normalised, compared and validated. Imports no other package of shared."""
