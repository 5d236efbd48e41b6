"""The production scheduler in virtual time."""
