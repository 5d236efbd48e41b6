"""Proofs: a model is served in parts only if its parts answer as the whole model does."""
