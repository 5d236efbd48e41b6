"""Structured outputs: grammars, read and checked before a request is admitted."""
