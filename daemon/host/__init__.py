"""This host: its addresses, memory and limits, and what must be the same on all nodes."""
