"""A small Llama that really answers: its tasks, training, measurement and checkpoint."""
