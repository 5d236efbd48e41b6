"""Profiling: measures the cost of steps on this hardware."""
