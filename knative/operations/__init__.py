"""Operator tasks between releases: administrators, dead letters, replay, signing keys, backups."""
