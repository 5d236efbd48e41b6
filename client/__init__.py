"""Clients: the offline LLM class, run-batch, and the terminal commands."""
