"""Scheduling policies: each decides what the next micro-batch contains."""
