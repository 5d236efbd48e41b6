"""An open sequence: what the server keeps of one that it has handed to the engine.

It is enough to hand it to another engine, which goes on where the last one was.
"""

from array import array
from collections import abc
from collections.abc import Iterable
from dataclasses import dataclass

from msgspec.structs import replace

from server.openai.rendering.logprobs import TokenLogprobs
from server.requests.output_coalescing import Inbox
from wire.messages import Finished, Submit


@dataclass
class Queue:
    """How many sequences wait for their first token, and the tokens of their prompts in all."""

    num_sequences: int = 0
    num_tokens: int = 0


class Sequence:
    """One sequence in the engine, and what has arrived for it.

    `output_ids` are all tokens so far; `told` the log-probabilities that were not yet taken, one
    for each token where any were asked for; `scores` those of the prompt's tokens but the first,
    all there with the first token. Until then it is in a `queue`, unless it is offline work.
    """

    __slots__ = (
        "_inbox",
        "_num_taken",
        "finished",
        "first_token_at",
        "index",
        "last_token_at",
        "output_ids",
        "prompt_token_ids",
        "queue",
        "scores",
        "submit",
        "told",
    )

    def __init__(
        self,
        submit: Submit,
        index: int,
        inbox: "Inbox[Sequence]",
        prompt_token_ids: abc.Sequence[int] = (),
        queue: Queue | None = None,
    ) -> None:
        """The `index` is its choice's; what has arrived is told to the `inbox`."""
        self.submit = submit
        self.index = index
        self.prompt_token_ids = prompt_token_ids
        self.output_ids = array("i")
        self.finished: Finished | None = None
        self.first_token_at: float | None = None
        self.last_token_at = 0.0
        self.queue = queue
        self.told: list[TokenLogprobs] = []
        self.scores: list[TokenLogprobs] = []
        self._num_taken = 0
        self._inbox = inbox

    @property
    def sequence_id(self) -> int:
        """Its id in every engine."""
        return self.submit.sequence_id

    def enter_queue(self) -> None:
        """It waits for its first token from now on."""
        if self.queue is not None:
            self.queue.num_sequences += 1
            self.queue.num_tokens += len(self.prompt_token_ids)

    def leave_queue(self) -> None:
        """It waits no longer; once is enough."""
        if self.queue is not None:
            self.queue.num_sequences -= 1
            self.queue.num_tokens -= len(self.prompt_token_ids)
            self.queue = None

    def put_first_token(self, token_id: int, now: float) -> None:
        """The engine has begun; nobody waits for the answer to begin any more."""
        self.leave_queue()
        self.first_token_at = now
        self.put_token(token_id)
        if not self._inbox.only_ends:
            self._inbox.hurry()

    def put_token(self, token_id: int) -> None:
        """Add a token that the engine has generated."""
        if len(self.output_ids) == self._num_taken:
            self._inbox.put(self)
        self.output_ids.append(token_id)
        self._inbox.count_token()

    def put_scores(self, scores: Iterable[tuple[int, TokenLogprobs]]) -> None:
        """Add those of the prompt's tokens, by position, that were not told before a loss."""
        for position, told in scores:
            if position == len(self.scores) + 1:
                self.scores.append(told)

    def expect(self, predicted_len: int, spread: float) -> None:
        """A better expectation of its length, for the next engine as well."""
        self.submit = replace(self.submit, predicted_len=predicted_len, spread=spread)

    def finish(self, message: Finished) -> None:
        """Note the last message; tokens before it are still there to take."""
        self.finished = message
        if len(self.output_ids) == self._num_taken:
            self._inbox.put(self)
        self._inbox.hurry()

    def resubmission(self) -> Submit:
        """Its `Submit` for an engine that has never heard of it."""
        if not self.output_ids:
            return self.submit
        sampling = replace(self.submit.sampling, num_prompt_logprobs=-1)  # all told
        output = self.output_ids.tobytes()
        return replace(self.submit, sampling=sampling, output_token_ids=output)

    def take_tokens(self) -> list[int]:
        """The tokens since the last call."""
        token_ids = self.output_ids[self._num_taken :].tolist()
        self._num_taken += len(token_ids)
        return token_ids
