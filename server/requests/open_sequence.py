"""An open sequence: the server's record of a sequence that it has submitted to the engine.

The record has everything that is needed to resubmit the sequence to another engine, which continues
where the previous engine stopped.
"""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from server.requests.logprobs import TokenLogprobs
from server.requests.output_coalescing import Inbox
from server.requests.sequence_parts import Mark
from wire.messages import Finished, Submit


@dataclass
class QueueTotals:
    """The number of sequences without a first token, and the number of their prompt tokens."""

    num_sequences: int = 0
    num_tokens: int = 0


class OpenSequence:
    """One sequence in the engine, and the output that has arrived for it.

    `output_ids` are all tokens so far. `logprobs` are the log-probabilities that were not taken
    yet, one for each token if the request asked for any. `scores` are the log-probabilities of the
    prompt tokens except the first; they are complete when the first output token arrives. Until
    then the sequence counts in a `queue`, unless it is offline work. The first `num_cached_tokens`
    tokens of the prompt were in the engine's prefix cache. Another daemon has generated the first
    `num_resumed` output tokens. `marks` are its milestones, if it is traced.
    """

    __slots__ = (
        "_inbox",
        "_num_taken",
        "finished",
        "first_token_at",
        "index",
        "last_token_at",
        "logprobs",
        "marks",
        "num_cached_tokens",
        "num_resumed",
        "output_ids",
        "prompt_token_ids",
        "queue",
        "scores",
        "submit",
    )

    def __init__(
        self,
        submit: Submit,
        index: int,
        inbox: "Inbox[OpenSequence]",
        prompt_token_ids: Sequence[int] = (),
        queue: QueueTotals | None = None,
        output: Sequence[int] = (),
    ) -> None:
        """`index` is the index of the choice; arrivals are put into the `inbox`.

        The sequence continues after the `output`, which counts as taken.
        """
        self.submit = submit
        self.index = index
        self.prompt_token_ids = prompt_token_ids
        self.output_ids = array("i", output)
        self.finished: Finished | None = None
        self.first_token_at: float | None = None
        self.last_token_at = 0.0
        self.queue = queue
        self.num_cached_tokens = 0
        self.logprobs: list[TokenLogprobs] = []
        self.scores: list[TokenLogprobs] = []
        self.marks: list[Mark] | None = None
        self.num_resumed = self._num_taken = len(output)
        self._inbox = inbox

    @property
    def sequence_id(self) -> int:
        """The id of the sequence, which is the same in every engine."""
        return self.submit.sequence_id

    def trace(self) -> None:
        """Collect milestones; call this before the sequence is submitted."""
        self.marks, self.submit = [], replace(self.submit, traced=True)

    def enter_queue(self) -> None:
        """Count the sequence in its queue from now on."""
        if self.queue is not None:
            self.queue.num_sequences += 1
            self.queue.num_tokens += len(self.prompt_token_ids)

    def leave_queue(self) -> None:
        """Stop counting the sequence in its queue; further calls have no effect."""
        if self.queue is not None:
            self.queue.num_sequences -= 1
            self.queue.num_tokens -= len(self.prompt_token_ids)
            self.queue = None

    def put_first_token(self, token_id: int, now: float) -> None:
        """Add the first token that the engine has generated."""
        self.leave_queue()
        self.first_token_at = now
        self.put_token(token_id)
        if not self._inbox.only_ends:
            self._inbox.flush_soon()

    def put_token(self, token_id: int) -> None:
        """Add a token that the engine has generated."""
        if len(self.output_ids) == self._num_taken:
            self._inbox.put(self)
        self.output_ids.append(token_id)
        self._inbox.count_token()

    def put_scores(self, scores: Iterable[tuple[int, TokenLogprobs]]) -> None:
        """Add prompt scores by position, except those that arrived before an engine was lost."""
        for position, logprobs in scores:
            if position == len(self.scores) + 1:
                self.scores.append(logprobs)

    def expect(self, predicted_len: int, spread: float) -> None:
        """Store a better length prediction, so that the next engine gets it as well."""
        self.submit = replace(self.submit, predicted_len=predicted_len, spread=spread)

    def finish(self, message: Finished) -> None:
        """Store the last message; earlier tokens can still be taken."""
        self.finished = message
        if len(self.output_ids) == self._num_taken:
            self._inbox.put(self)
        self._inbox.flush_soon()

    def resubmission(self) -> Submit:
        """Return the `Submit` for an engine that does not have the sequence yet."""
        if not self.output_ids:
            return self.submit
        sampling = replace(self.submit.sampling, num_prompt_logprobs=-1)  # all have arrived
        output = self.output_ids.tobytes()
        return replace(self.submit, sampling=sampling, output_token_ids=output)

    def take_tokens(self) -> list[int]:
        """Return the tokens since the last call."""
        token_ids = self.output_ids[self._num_taken :].tolist()
        self._num_taken += len(token_ids)
        return token_ids
