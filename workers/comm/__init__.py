"""Communication between stages: rendezvous, all-gather, point-to-point activations."""
