"""The model of one stage: transformers' code, its layers, attention and KV cache."""
