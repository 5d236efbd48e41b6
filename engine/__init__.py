"""The engine: one process that schedules tokens and KV blocks over time."""
