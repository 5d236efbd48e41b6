"""Rendering: converts output to the events of a stream, whole answers and log-probabilities."""
