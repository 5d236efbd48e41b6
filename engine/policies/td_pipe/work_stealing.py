"""Inter-batch work stealing: equal decode micro-batches though requests end unequally (TD-Pipe,
section 3.4).

Only one micro-batch is visible at a time, the one that has just come back; the other S - 1 are in
flight. A micro-batch above the average has its surplus withheld, one below is topped up from what
was withheld. The paper's code takes the total from a sliding window of the last S sizes, less those
that finished; the ledger knows it exactly.
"""


def average_rows(num_idle: int, num_live: int, num_stages: int) -> int:
    """Rows of the next micro-batch out of `num_idle` sequences that came back or are withheld.

    `num_live` counts those in flight too.
    """
    return min(num_idle, -(-num_live // num_stages))
