"""The cost of single parts: kernels, steps, streamed tokens, grammars."""
