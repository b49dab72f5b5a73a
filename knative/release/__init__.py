"""Releases: checked, deployed in steps, rolled back, listed."""
