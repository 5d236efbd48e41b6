"""Attention over the paged KV cache: one interface, and the backends that implement it."""
