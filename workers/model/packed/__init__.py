"""Packed weights on a CPU: linear layers and experts in the order in which a kernel reads them."""
