"""Simulated hardware: GPUs, models, and the cost of a step on them."""
