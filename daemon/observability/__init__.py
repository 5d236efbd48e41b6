"""Observability: the log of all processes, and traces."""
