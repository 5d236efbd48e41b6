"""The model of one stage: its layers (with transformers' code), attention and KV cache."""
