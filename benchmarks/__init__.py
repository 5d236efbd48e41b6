"""Load for a running daemon: workloads, an open-loop client, and the figures it brings home."""
