"""Settings: one schema for YAML, environment and flags, read once and frozen."""
