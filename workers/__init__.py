"""The workers: pipeline stages that take plans from the engine and compute on tensors."""
