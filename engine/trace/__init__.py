"""Records of a run: the journal of decisions and the trace of steps."""
