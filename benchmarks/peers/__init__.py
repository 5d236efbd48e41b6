"""The same workload through other engines and through tdpipe, in turn: `make peers`."""
