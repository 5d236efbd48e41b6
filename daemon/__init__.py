"""Processes: how they are started, watched, restarted and ended, and their log."""
