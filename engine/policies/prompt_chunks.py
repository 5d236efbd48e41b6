"""The chunks of a prompt that is longer than a step: small enough to keep all stages busy.

A prompt in few large chunks leaves most stages idle while the first chunk is in the first stage
and the last one in the last stage. Small chunks cost more in sum: each reads the weights, and the
KV of the chunks before it. The cost model weighs the two.
"""

from copy import copy

from engine.costs.cost_model import CostModel, StepSize

SMALLEST = 64  # tokens
# The largest size that is within this factor of the best: costs are known to a few percent only.
TOLERANCE = 1.02
# A stage computes at most this factor longer than in the largest chunks, which is what matters when
# other prompts wait.
MOST_WORK = 1.05


class PromptChunks:
    """Chooses the chunk size of long prompts, from their own lengths only.

    The sizes follow from the costs at the start: the cost model is corrected in operation, and the
    chunks of a prompt must not change with it, because its KV may depend on them (batch
    invariance).
    """

    def __init__(self, max_tokens: int, num_stages: int, cost: CostModel) -> None:
        self._max_tokens, self._num_stages, self._cost = max_tokens, num_stages, copy(cost)
        self._chosen: dict[int, int] = {}

    def size(self, num_tokens: int) -> int:
        """The most tokens of a step for a prompt of this length."""
        if num_tokens <= self._max_tokens:
            return self._max_tokens
        num_steps = -(-num_tokens // self._max_tokens)
        if num_steps not in self._chosen:
            self._chosen[num_steps] = self._best(num_steps * self._max_tokens)
        return self._chosen[num_steps]

    def _best(self, num_tokens: int) -> int:
        sizes = [self._max_tokens]
        while sizes[-1] >= 2 * SMALLEST:
            sizes.append(sizes[-1] // 2)
        work = [sum(chunks_s(self._cost, num_tokens, size)) for size in sizes]
        sizes = [size for size, s in zip(sizes, work, strict=True) if s <= MOST_WORK * work[0]]
        seconds = [prefill_s(self._cost, self._num_stages, num_tokens, size) for size in sizes]
        limit = TOLERANCE * min(seconds)
        return next(size for size, s in zip(sizes, seconds, strict=True) if s <= limit)


def prefill_s(cost: CostModel, num_stages: int, num_tokens: int, size: int) -> float:
    """The seconds of a prompt in chunks of `size` tokens through equal stages that are idle.

    A flow shop of equal machines: the sum of all chunks on one stage, and the largest chunk once
    more on each other stage.
    """
    chunks = chunks_s(cost, num_tokens, size)
    return sum(chunks) + (num_stages - 1) * max(chunks)


def chunks_s(cost: CostModel, num_tokens: int, size: int) -> list[float]:
    """The seconds of each chunk of a prompt on one stage."""
    begins = range(0, num_tokens, size)
    return [_chunk_s(cost, begin, min(size, num_tokens - begin)) for begin in begins]


def _chunk_s(cost: CostModel, begin: int, num_tokens: int) -> float:
    pairs = num_tokens * begin + num_tokens * (num_tokens + 1) / 2
    return cost.step_s(StepSize(num_tokens, 1, begin, pairs))
