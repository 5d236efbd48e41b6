"""Requests: their admission, planning, submission to the engine, and output."""
