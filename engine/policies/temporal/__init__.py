"""Policy temporal: temporal disaggregation without phase-switch bubbles."""
