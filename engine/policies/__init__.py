"""Scheduling policies: each decides the next micro-batch."""
