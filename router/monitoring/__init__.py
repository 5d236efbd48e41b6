"""What the router tells of itself: metrics and a stats log."""
