"""The simulator: runs the production scheduler in virtual time."""
