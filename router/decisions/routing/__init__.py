"""Routing rules: which instance gets a request, or whether it waits."""
