"""Files and batches: much work in one file, done in the gaps, and never lost."""
