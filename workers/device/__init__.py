"""Copies between host memory and a stage's device, without waiting where that is a GPU."""
