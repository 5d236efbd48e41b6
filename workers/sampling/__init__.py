"""Sampling on the last stage: logits to token ids, under grammars and penalties."""
