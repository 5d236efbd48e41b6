"""A sequence: the tokens of a request in the engine, and its state.

    waiting --admit--> running <--> ready --> finished
       ^                               |
       +----------- preempt -----------+

A waiting sequence holds no KV. A ready sequence holds KV and is idle. A running sequence is in at
least one step in flight.
"""

from array import array
from enum import Enum, auto

from engine.state.expectation import Expectation
from wire.messages import Sampling, Submit

PrefixOrder = tuple[float, tuple[int, ...]]
"""The place of a sequence in an order that keeps common prefixes together.

When the first sequence with its first block arrived, the number of that sequence, and then, for
each block from which on its prefix is another one than that of the sequences before: the negative
index of the block, so that those that share more come first, and the number of the first sequence
of that branch.
"""


class State(Enum):
    """The state of a sequence."""

    WAITING = auto()
    READY = auto()
    RUNNING = auto()
    FINISHED = auto()


class Sequence:
    """Tokens, KV blocks and progress of one sequence.

    `token_ids` is the prompt and the generated tokens; `num_planned` counts the leading tokens
    whose KV is in the cache or computed by steps in flight. `longest_len` is the maximum length in
    tokens, and `shortest_len` the minimum length at which a stop token ends the sequence.
    `expected` is the predicted output length. `micro_batch_index` is the decode micro-batch of the
    sequence, under policies that keep the members of micro-batches together. If `is_plain`, the
    sequence needs only the likeliest token; otherwise it has a `sampler_slot` after it has first
    sampled. The first `num_scored` tokens of the prompt are scored, or steps in flight score them.
    `num_failures` counts the pipelines that failed while the sequence was in flight, since it was
    last cleared (see `engine.quarantine`). `scheduled_at` and `first_token_at` are the times of its
    first step and of its first token, unless an earlier engine has generated tokens of it.

    `prefix_keys` are the keys of its first full blocks, as far as they are known, and `prefix_root`
    is what they begin with, see `engine.state.prefix_cache`; the first `num_joined` of them belong
    to tokens that it had when it began to wait. The first `num_registered` blocks of the table have
    their keys in the ledger. A waiting sequence expects its first `expected_hit` tokens in the
    cache. Other sequences held `num_shared` of its blocks when it was last admitted. `num_lost`
    tokens of its KV were computed, and lost.

    If `is_pending`, the last of the `token_ids` has not been sampled yet: it is a placeholder,
    -1 - i for the i-th token that the oldest step in flight samples (see `Scheduler._look_ahead`).
    """

    __slots__ = (
        "arrived_at",
        "block_table",
        "expected",
        "expected_hit",
        "first_token_at",
        "is_pending",
        "is_plain",
        "longest_len",
        "micro_batch_index",
        "num_failures",
        "num_joined",
        "num_lost",
        "num_planned",
        "num_prompt_tokens",
        "num_registered",
        "num_scored",
        "num_shared",
        "prefix_keys",
        "prefix_order",
        "prefix_root",
        "sampler_slot",
        "scheduled_at",
        "sequence_id",
        "shortest_len",
        "state",
        "stop_token_ids",
        "submit",
        "token_ids",
        "was_admitted",
    )

    def __init__(self, submit: Submit, arrived_at: float, expected: Expectation) -> None:
        """Create a waiting sequence. Raises `ValueError` if the token ids are not packed int32."""
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
        self.prefix_root = b""
        self.prefix_keys: list[bytes] = []
        self.num_joined = 0
        self.prefix_order: PrefixOrder = (arrived_at, ())
        self.num_registered = 0
        self.expected_hit = 0
        self.was_admitted = False
        self.num_shared = 0
        self.num_lost = 0
        self.is_pending = False
        self.scheduled_at: float | None = None
        self.first_token_at: float | None = None

    @property
    def num_generated(self) -> int:
        """The number of output tokens so far."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_unplanned(self) -> int:
        """The number of tokens to feed before the next token can be sampled."""
        return len(self.token_ids) - self.num_planned - self.expected_hit

    @property
    def predicted_len(self) -> int:
        """The expected number of output tokens."""
        return self.expected.mean

    @property
    def predicted_remaining(self) -> int:
        """The number of output tokens still expected; 0 if the prediction is exceeded."""
        return max(0, self.expected.mean - self.num_generated)

    def lose_kv(self) -> None:
        """Reset the sequence after its KV was freed or lost; its tokens are kept."""
        self.num_lost = max(self.num_lost, self.num_planned)
        self.num_planned = self.num_registered = self.num_shared = 0
        self.micro_batch_index = -1
        self.state = State.WAITING

    def lose_stages(self) -> None:
        """Reset what the lost stages held: the sampler slot and the scores not yet returned."""
        self.sampler_slot = -1
        if not self.num_generated:
            self.num_scored = 0

    def has_stopped(self) -> bool:
        """Whether the last token is a stop token that may end the sequence."""
        return (
            len(self.token_ids) >= self.shortest_len and self.token_ids[-1] in self.stop_token_ids
        )


def _is_plain(submit: Submit) -> bool:
    """Whether the sequence needs only the likeliest token, without log-probabilities."""
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
