"""A sequence: one request's tokens inside the engine, and where it stands.

    waiting --admit--> running <--> ready --> finished
       ^                               |
       +----------- preempt -----------+

waiting holds no KV, ready holds KV and is idle, running is in at least one step in flight.
"""

from array import array
from enum import Enum, auto

from engine.state.expectation import Expectation
from wire.messages import Sampling, Submit


class State(Enum):
    """Where a sequence stands."""

    WAITING = auto()
    READY = auto()
    RUNNING = auto()
    FINISHED = auto()


class Sequence:
    """Tokens, KV blocks and progress of one sequence.

    `token_ids` is the prompt and what has been generated; `num_planned` counts the leading tokens
    whose KV is in the cache or on its way there through steps in flight. `longest_len` is the
    length in tokens at which it is full, `shortest_len` the one from which a stop token ends it.
    `expected` is the predicted output length, `micro_batch_index` the decode micro-batch that it
    belongs to where micro-batches keep their members. `is_plain` sequences need only the likeliest
    token; others have a `sampler_slot` once they have sampled. The first `num_scored` tokens of the
    prompt have been scored, or will be by steps in flight. `num_failures` counts the pipelines that
    failed with it in flight, since it was last cleared.
    """

    __slots__ = (
        "arrived_at",
        "block_table",
        "expected",
        "is_plain",
        "longest_len",
        "micro_batch_index",
        "num_failures",
        "num_planned",
        "num_prompt_tokens",
        "num_scored",
        "sampler_slot",
        "sequence_id",
        "shortest_len",
        "state",
        "stop_token_ids",
        "submit",
        "token_ids",
    )

    def __init__(self, submit: Submit, arrived_at: float, expected: Expectation) -> None:
        """A waiting sequence. Raises `ValueError` when its tokens are not packed int32."""
        self.submit = submit
        self.sequence_id = submit.sequence_id
        self.arrived_at = arrived_at
        self.token_ids = array("i")
        self.token_ids.frombytes(submit.prompt_token_ids)
        self.num_prompt_tokens = len(self.token_ids)
        self.token_ids.frombytes(submit.output_token_ids)
        self.longest_len = self.num_prompt_tokens + submit.max_tokens
        self.shortest_len = self.num_prompt_tokens + submit.min_tokens
        self.stop_token_ids = frozenset(submit.stop_token_ids)
        self.is_plain = _is_plain(submit)
        self.num_scored = 0
        self.expected = expected
        self.state = State.WAITING
        self.block_table = array("i")
        self.num_planned = 0
        self.micro_batch_index = -1
        self.sampler_slot = -1
        self.num_failures = 0

    @property
    def num_generated(self) -> int:
        """Output tokens so far."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_unplanned(self) -> int:
        """Tokens that still have to be fed before the next one can be sampled."""
        return len(self.token_ids) - self.num_planned

    @property
    def predicted_len(self) -> int:
        """Output tokens expected in all."""
        return self.expected.mean

    @property
    def predicted_remaining(self) -> int:
        """Output tokens still expected; 0 once the prediction is exceeded."""
        return max(0, self.expected.mean - self.num_generated)

    def lose_kv(self) -> None:
        """Nothing of it is in the stages any more; all its tokens stay."""
        self.num_planned = 0
        self.micro_batch_index = -1
        self.state = State.WAITING

    def lose_stages(self) -> None:
        """The stages that knew it are gone, and with them the scores that they have not told."""
        self.sampler_slot = -1
        if not self.num_generated:
            self.num_scored = 0

    def has_stopped(self) -> bool:
        """Whether the last token is a stop token that may end the sequence."""
        return (
            len(self.token_ids) >= self.shortest_len and self.token_ids[-1] in self.stop_token_ids
        )


def _is_plain(submit: Submit) -> bool:
    """Whether the likeliest token, and nothing told of it, is all that is wanted."""
    sampling = submit.sampling
    plain = Sampling(
        temperature=0.0,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        seed=sampling.seed,
        min_p=sampling.min_p,
        num_prompt_logprobs=sampling.num_prompt_logprobs,
    )
    return sampling == plain and not submit.min_tokens
