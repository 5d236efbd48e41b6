"""The lifecycle of a request between its body and the engine."""
