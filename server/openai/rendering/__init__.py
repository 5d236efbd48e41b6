"""How answers look: events of a stream, whole answers, log-probabilities."""
