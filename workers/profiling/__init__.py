"""Measuring what steps cost on this hardware."""
