"""Our own CPU kernels in C++: they are compiled on the machine that runs them, on first use."""
