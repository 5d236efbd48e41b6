"""Files, batches and answers on disk."""
