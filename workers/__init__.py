"""The workers: pipeline stages that speak tensors and obey plans."""
