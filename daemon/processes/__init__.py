"""Processes of the daemon: tied to their parent, watched, and how they ended."""
