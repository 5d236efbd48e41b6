"""What a step costs: the cost model and its correction by measured times."""
