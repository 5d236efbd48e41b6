"""Inter-batch work stealing: keeps decode micro-batches equal in size (TD-Pipe, section 3.4).

Only one micro-batch is visible at a time, the one that has just returned; the other S - 1 are in
flight. If it is above the average, the surplus sequences are withheld; if it is below, it is topped
up from the withheld ones. The paper's code computes the total from a sliding window of the last S
sizes minus the finished sequences; here the pool has the exact number.
"""


def average_rows(num_idle: int, num_live: int, num_stages: int) -> int:
    """Rows of the next micro-batch, of `num_idle` sequences that have returned or are withheld.

    `num_live` includes the sequences in flight.
    """
    return min(num_idle, -(-num_live // num_stages))
