"""Monitoring: metrics of the engine, traces of requests, and the log of throughput."""
