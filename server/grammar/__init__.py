"""Structured outputs: grammars, validated and checked before a request is admitted."""
