"""The load client: an open loop of requests against a running daemon."""
