"""Log-probabilities of tokens, unpacked from the engine's messages."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple, Self

from wire.messages import Logprobs

# JSON has no infinity: smaller log-probabilities, such as those of impossible tokens, become this.
_LEAST = -9999.0


class TokenLogprobs(NamedTuple):
    """Log-probabilities at one position: of the sampled token (rank from 1) and the most likely.

    `tops` has (token id, log-probability) pairs in descending order.
    """

    token_id: int
    logprob: float
    rank: int
    tops: tuple[tuple[int, float], ...]

    def all(self, num_tops: int) -> dict[int, tuple[float, int]]:
        """Return log-probability and rank of the `num_tops` most likely and the sampled token."""
        tops = {id_: (logprob, i + 1) for i, (id_, logprob) in enumerate(self.tops[:num_tops])}
        return tops | {self.token_id: (self.logprob, self.rank)}

    def with_sampled(self) -> Self:
        """Return the same with the sampled token among the others, first if it was not there."""
        if any(token_id == self.token_id for token_id, _ in self.tops):
            return self
        return self._replace(tops=((self.token_id, self.logprob), *self.tops))


def unpack(logprobs: Logprobs, token_ids: Sequence[int]) -> Iterator[tuple[int, TokenLogprobs]]:
    """Yield each position with log-probabilities; `token_ids` are the tokens of all positions."""
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
