"""Text and tokens: tokenizer, detokenizer, stop strings."""
