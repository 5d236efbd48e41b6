"""Log-probabilities of tokens, unpacked from the engine's messages."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

from wire.messages import Logprobs

# JSON has no infinity; impossible tokens are at least this unlikely.
_LEAST = -9999.0


class TokenLogprobs(NamedTuple):
    """Log-probabilities at one position: the sampled token, its rank from 1, the likeliest tokens.

    `tops` holds (token id, log-probability) pairs in descending order.
    """

    token_id: int
    logprob: float
    rank: int
    tops: tuple[tuple[int, float], ...]

    def all(self, num_tops: int) -> dict[int, tuple[float, int]]:
        """Log-probability and rank of the `num_tops` likeliest tokens and of the sampled one."""
        tops = {id_: (logprob, i + 1) for i, (id_, logprob) in enumerate(self.tops[:num_tops])}
        return tops | {self.token_id: (self.logprob, self.rank)}


def unpack(logprobs: Logprobs, token_ids: Sequence[int]) -> Iterator[tuple[int, TokenLogprobs]]:
    """Each position that has log-probabilities, with them; `token_ids` are of all positions."""
    indices, num_tops = array("i", logprobs.indices), array("i", logprobs.num_tops)
    chosen, ranks = array("f", logprobs.chosen), array("i", logprobs.ranks)
    tops = list(zip(array("i", logprobs.top_ids), _finite(array("f", logprobs.tops)), strict=True))
    starts = accumulate(num_tops, initial=0)
    for index, logprob, rank, start, count in zip(
        indices, _finite(chosen), ranks, starts, num_tops, strict=False
    ):
        yield (
            index,
            TokenLogprobs(token_ids[index], logprob, rank, tuple(tops[start : start + count])),
        )


def _finite(values: Iterable[float]) -> list[float]:
    return [max(value, _LEAST) for value in values]
