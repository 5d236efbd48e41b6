"""The cost of a step: the cost model and its correction by measured times."""
