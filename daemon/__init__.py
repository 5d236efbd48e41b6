"""The life of processes: start, watch, restart, end, log."""
