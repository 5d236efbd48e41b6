"""Bodies of requests: read within limits, decompressed, parsed and validated."""
