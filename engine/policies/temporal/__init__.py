"""Policy temporal: temporal disaggregation without bubbles at phase switches."""
