"""A sequence: one request's tokens inside the engine, and where it stands.

    waiting --admit--> running <--> ready --> finished
       ^                               |
       +----------- preempt -----------+

waiting holds no KV, ready holds KV and is idle, running is in at least one step in flight.
"""

from array import array
from dataclasses import dataclass, field
from enum import Enum, auto

from engine.messages import Submit


class State(Enum):
    """Where a sequence stands."""

    WAITING = auto()
    READY = auto()
    RUNNING = auto()
    FINISHED = auto()


@dataclass(slots=True, eq=False)
class Sequence:
    """Tokens, KV blocks and progress of one sequence.

    `token_ids` is the prompt and what has been generated; `num_planned` counts the leading tokens
    whose KV is in the cache or on its way there through steps in flight.
    """

    submit: Submit
    arrived_at: float
    token_ids: "array[int]"
    num_prompt_tokens: int
    state: State = State.WAITING
    block_table: "array[int]" = field(default_factory=lambda: array("i"))
    num_planned: int = 0
    last_decode_step: int = -1

    @classmethod
    def from_submit(cls, submit: Submit, now: float) -> "Sequence":
        """A waiting sequence. Raises `ValueError` when the prompt is not packed int32."""
        token_ids = array("i")
        token_ids.frombytes(submit.prompt_token_ids)
        return cls(submit, now, token_ids, len(token_ids))

    @property
    def sequence_id(self) -> int:
        """The id that the server chose."""
        return self.submit.sequence_id

    @property
    def num_generated(self) -> int:
        """Output tokens so far."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_unplanned(self) -> int:
        """Tokens that still have to be fed before the next one can be sampled."""
        return len(self.token_ids) - self.num_planned

    def append(self, token_id: int) -> None:
        """Take a newly sampled token."""
        self.token_ids.append(token_id)

    def has_stopped(self) -> bool:
        """Whether the last token is a stop token that may end the sequence."""
        submit = self.submit
        return self.num_generated >= submit.min_tokens and (
            self.token_ids[-1] in submit.stop_token_ids
        )

    def is_full(self) -> bool:
        """Whether it has all the tokens it may have."""
        return self.num_generated >= self.submit.max_tokens

    def bans_stop(self) -> bool:
        """Whether the next token must not be a stop token (`min_tokens`)."""
        return self.num_generated < self.submit.min_tokens and bool(self.submit.stop_token_ids)
