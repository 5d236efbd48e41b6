"""Inter-batch work stealing: keeps decode micro-batches equal in size (TD-Pipe, section 3.4).

Only one micro-batch is visible at a time, the one that has just returned; the other S - 1 are in
flight. If it is larger than the average, its surplus sequences are withheld; if it is smaller, it
is topped up with withheld sequences. The paper's code computes the total from a sliding window of
the last S sizes minus the finished sequences; here the pool knows the exact total.
"""

from collections.abc import Iterable

from engine.state.sequence import Sequence

# The micro-batch index of sequences that are withheld.
WITHHELD = -1


def average_rows(num_idle: int, num_live: int, num_stages: int) -> int:
    """The number of rows of the next micro-batch: at most an equal share of the live sequences.

    `num_idle` sequences have returned or are withheld; `num_live` includes those in flight.
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
    """Withhold the members beyond `num_rows`, and make the `launched` rows members.

    Returns the number of rows that were topped up (steals).
    """
    for sequence in members[num_rows:]:
        sequence.micro_batch_index = WITHHELD
    for sequence in launched:
        sequence.micro_batch_index = micro_batch_index
    return max(0, len(launched) - len(members))
