"""Processes: starts, watches, restarts and ends them, and writes their log."""
