"""A small Llama that solves simple tasks: the tasks, training, measurement and checkpoint."""
