"""Inter-batch work stealing: keeps decode micro-batches equal in size (TD-Pipe, section 3.4).

Only one micro-batch is visible at a time, the one that has just returned; the other S - 1 are in
flight. If it is above the average, the surplus sequences are withheld; if it is below, it is topped
up from the withheld ones. The paper's code computes the total from a sliding window of the last S
sizes minus the finished sequences; here the pool has the exact number.
"""

from collections.abc import Iterable

from engine.state.sequence import Sequence

# The micro-batch index of sequences that are withheld.
WITHHELD = -1


def average_rows(num_idle: int, num_live: int, num_stages: int) -> int:
    """Rows of the next micro-batch, of `num_idle` sequences that have returned or are withheld.

    `num_live` includes the sequences in flight.
    """
    return min(num_idle, -(-num_live // num_stages))


def members_and_withheld(
    ready: Iterable[Sequence], micro_batch_index: int
) -> tuple[list[Sequence], list[Sequence]]:
    """The idle sequences of one micro-batch, and those that are withheld."""
    members, withheld = [], []
    for sequence in ready:
        if sequence.micro_batch_index == micro_batch_index:
            members.append(sequence)
        elif sequence.micro_batch_index == WITHHELD:
            withheld.append(sequence)
    return members, withheld


def reassign(
    members: list[Sequence], launched: list[Sequence], num_rows: int, micro_batch_index: int
) -> int:
    """Withhold the members beyond `num_rows`; the `launched` rows are members from now on.

    Returns the number of rows that were topped up (steals).
    """
    for sequence in members[num_rows:]:
        sequence.micro_batch_index = WITHHELD
    for sequence in launched:
        sequence.micro_batch_index = micro_batch_index
    return max(0, len(launched) - len(members))
