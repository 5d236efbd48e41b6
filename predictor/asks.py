"""The queue of `Ask` messages that wait for the encoder, with a limit on their prompts.

An ask is a message with the prompts of one request, whose lengths are to be predicted.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from predictor.checkpoint import Prediction
from wire.predictor_messages import Answer, Ask

MAX_PROMPTS = 8192
# Large enough for batches of prompts of similar length, small enough that a new ask waits seconds.
GROUP_PROMPTS = 256
BATCH_PROMPTS = 32


@dataclass(slots=True)
class OpenAsk:
    """An ask and the predictions of its prompts so far."""

    peer: str
    ask: Ask
    found: dict[int, Prediction] = field(default_factory=dict)

    @property
    def is_done(self) -> bool:
        """Whether the lengths for all its prompts are predicted."""
        return len(self.found) == len(self.ask.prompts)

    def answer(self) -> Answer:
        """The answer to the ask; requires `is_done`."""
        each = [self.found[i] for i in range(len(self.ask.prompts))]
        return Answer(
            self.ask.request_id,
            tuple(one.length_class for one in each),
            tuple(one.predicted_len for one in each),
            tuple(one.spread for one in each),
        )


class AskQueue:
    """Asks in the order of their arrival.

    When there are too many prompts, the oldest asks are dropped, because their requests are the
    most likely to have finished already.
    """

    def __init__(self, max_prompts: int = MAX_PROMPTS) -> None:
        self.num_prompts = 0
        self._max_prompts = max_prompts
        self._asks: deque[OpenAsk] = deque()

    def __bool__(self) -> bool:
        return bool(self._asks)

    def add(self, peer: str, ask: Ask) -> int:
        """Add an ask; returns how many asks were dropped to make space, which may include this."""
        self._asks.append(OpenAsk(peer, ask))
        self.num_prompts += len(ask.prompts)
        num_dropped = 0
        while self.num_prompts > self._max_prompts:
            self._pop()
            num_dropped += 1
        return num_dropped

    def next_group(self) -> list[OpenAsk]:
        """The oldest asks, which together have about `GROUP_PROMPTS` prompts."""
        asks: list[OpenAsk] = []
        num_prompts = 0
        while self._asks and num_prompts < GROUP_PROMPTS:
            asks.append(self._pop())
            num_prompts += len(asks[-1].ask.prompts)
        return asks

    def _pop(self) -> OpenAsk:
        ask = self._asks.popleft()
        self.num_prompts -= len(ask.ask.prompts)
        return ask


def batches(asks: list[OpenAsk]) -> Iterator[list[tuple[OpenAsk, int]]]:
    """All prompts of a group as (ask, index), in batches of similar length, the shortest first."""
    prompts = [(ask, i) for ask in asks for i in range(len(ask.ask.prompts))]
    prompts.sort(key=lambda prompt: len(prompt[0].ask.prompts[prompt[1]]))
    for start in range(0, len(prompts), BATCH_PROMPTS):
        yield prompts[start : start + BATCH_PROMPTS]
