"""Experiments: a load client, measurements on real stages, stress tests and simulations."""
