"""The decisions of the router: pure functions of events and times, without I/O."""
