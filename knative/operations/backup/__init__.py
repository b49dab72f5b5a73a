"""Backups of the database: taken, listed, restored, tried out."""
