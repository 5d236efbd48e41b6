"""Predicted output lengths."""
