"""Conversations with a real model, token by token beside transformers' own answers."""
