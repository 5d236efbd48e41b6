"""Actuators: how instances are discovered, started and stopped."""
