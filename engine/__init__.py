"""The engine: one scheduler process that speaks tokens, blocks and time."""
