"""Basics of every process: settings, logs, metrics, deadlines, problems. Imports no other package of shared."""
