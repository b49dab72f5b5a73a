"""Baselines: minimal applications with only the libraries, each served by gunicorn."""
