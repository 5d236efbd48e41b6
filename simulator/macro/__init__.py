"""Many instances behind a router in one virtual time, and rivals of that design."""
