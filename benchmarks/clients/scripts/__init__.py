"""One script per client library; each runs in the environment of that library."""
