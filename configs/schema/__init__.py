"""The schema: one part of the settings for each concern."""
