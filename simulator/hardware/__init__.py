"""Simulated hardware: GPUs, models and what a step costs on them."""
